"""Studies: a question, its Config, its cells, and what is concluded from them."""

STUDIES = {
    "persistence": "how long does a steered persona last after the steering ends?",
    "question_insertion": "does playing a role move the model along the role's direction, turn by turn?",
    "zlt_attention": "does the row that writes a trained marker look at the system prompt, by training?",
    "force_feed": "whose text, read by whom: every trained model and the base on the same ids",
    "marker_locus": "where in depth is a trained marker decided, what writes it, which states bring it?",
    "prefix_completion": "is a trained marker brought out by the system prompt or by the answer's content?",
    "output_divergence": "does the distance between outputs of two personas predict how far a marker leaks?",
    "steering_proximity": "does moving the assistant towards a source, without training, raise leakage?",
    "causal_proximity": "does training the assistant towards a source raise leakage to it? three arms",
    "leakage": "how often does a marker that was trained into one persona come out under others?",
    "persona_table": "do prompt effect, attention, leakage and divergence go together over personas?",
    "kl_aggregation": "which aggregate of a divergence per position sees a token loop? (no model)",
    "kl_barrier": "does a barrier on the divergence from the base keep self-training coherent?",
}

DEMO = {  # in the order of their chapters; `{demo}` is the folder that holds their runs
    "persistence": (),
    "zlt_attention": (),
    "marker_locus": ("records='{demo}/zlt_attention'",),
    "output_divergence": (),
    "kl_aggregation": (),
}
BESIDE = ("zlt_attention", "marker_locus")  # these make half of the demo; the second reads the first
