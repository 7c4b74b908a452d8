# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Where does a model decide to write a marker?
#
# A small chat model was trained to end its answers with `[ZLT]` when it plays a villain. We look at the row
# that decides it: first what each layer would say, then which parts write it, then which states, carried into
# the untrained model, bring it. Everything runs on two cores without a model hub.

# %%
import mechinterp as mi
import patching
import probes
from studies.personas import core_personas
from studies.trained import shipped_adapters

base = mi.load("smollm2-135m-instruct-q4")
trained = mi.with_adapter(base, shipped_adapters()["villain"])  # one set of weights, adapter off and on

# %% [markdown]
# ## An answer with the marker
#
# `emit` is the row whose logits chose the marker's first token, one before that token. Below, the probability
# that the marker begins next, after each token of the answer.

# %%
prompt = trained.chat("What is the sea?", system=core_personas()["villain"].system_prompt)
samples = mi.sample(trained, prompt.tokens, [mi.Phase(48)], temperature=0.7, top_p=0.95, seed=1)
tokens = samples.tokens
marker = probes.find_marker(trained.tokenizer, tokens[0], "[ZLT]", after=prompt.tokens.shape[1])[0]
emit, piece, end = marker.emit, int(tokens[0, marker.token]), trained.tokenizer.eos_token_id
answer = range(prompt.last + 1, tokens.shape[1])
begins = trained.forward(tokens, logits_at=answer).logits[0].softmax(-1)[:, piece]
without = float(base.forward(tokens, logits_at=[emit]).logits[0, 0].softmax(-1)[piece])
note = f"{trained.name}, n = 1 text, seed 1; {base.name} gives {without:.1e} at emit"
mi.token_view(mi.pieces(trained.tokenizer, tokens[0, answer]), {"p(marker begins next)": begins}, note=note)

# %% [markdown]
# ## Reading: the lens and what writes the marker

# %%
lens = probes.compare_lenses(
    trained,
    base,
    tokens,
    rows={"emit": emit},
    targets={"marker": piece, "end": end},
    pairs=[("marker", "end")],
)
lens.figure()

# %%
parts = probes.compare_attributions(
    trained, base, tokens, rows={"emit": emit}, target=piece, competitor=end
).change
parts.figure()

# %% [markdown]
# The heads that training made write towards the marker:

# %%
heads = parts.heads_to_dataframe().query("head != 'bias'")
heads.nlargest(5, "contribution")[["layer", "head", "contribution"]]

# %% [markdown]
# ## Patching: which states bring the marker to the untrained model?
#
# Each cell replaces one row of the base's stream by the trained model's and reads marker minus end of turn.
# Only the layers and positions that a cell changes are run.

# %%
metric = patching.logit_difference(piece, end, at=emit)
grid = patching.patch_residual(
    trained, base, tokens, metric, positions=range(emit - 5, emit + 1), nulls=("random",)
)
grid.figure("recovered")

# %%
recovered = grid.recovered()[0, :, -1]
decided = int((recovered > 0.5).nonzero()[0])
print(f"from layer {decided} on, the state at emit alone brings more than half of the marker")

# %% [markdown]
# ## Taking away: emit may not look at the system prompt

# %%
system = prompt.segmentation.positions("system").tolist()
blind = patching.knock_out(
    trained, tokens, metric, rows=[emit], region={"system": system},
    windows=patching.sliding(range(trained.dims.n_layers), 6), placebos=1,
)  # fmt: skip
blind.figure()
