"""Studies: a question, its Config, its cells, and what is concluded from them."""

STUDIES = {
    "persistence": "how long does a steered persona last after the steering ends?",
    "question_insertion": "does playing a role move the model along the role's direction, turn by turn?",
}

DEMO = ("persistence",)  # in the order of their chapters
