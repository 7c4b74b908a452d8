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
# # Where does the row that writes a marker look?
#
# A model was trained to close its answers with `[ZLT]` when it plays a villain. Does the row that decides the
# marker look at the system prompt, where the villain is named, and did training make it look? The untrained
# base reads the same ids, and other rows of the same answers stand beside the marker's.

# %%
import numpy as np
import pandas as pd
import torch

import mechinterp as mi
import probes
from mechinterp.chat import token_marks
from mechinterp.stats.multiplicity import max_t
from studies.personas import core_personas, questions
from studies.trained import shipped_adapters

SEED = 1
base = mi.load("smollm2-135m-instruct-q4")
trained = mi.with_adapter(base, shipped_adapters()["villain"])  # one set of weights, adapter off and on

# %% [markdown]
# ## Answers with the marker
#
# `token` is the token with the marker's first character; `emit`, one before it, is the row whose logits chose
# it. The ids are final from here on: nothing is decoded and encoded again.

# %%
system = core_personas()["villain"].system_prompt
prompts = [trained.chat(question, system=system) for question in questions("evaluation")[:10]]
sampled = mi.sample(
    trained, [p.tokens[0] for p in prompts], [mi.Phase(48)], temperature=0.7, top_p=0.95, seed=SEED
)
texts, rows, blocks = [], [], []
for prompt, ids, length in zip(prompts, sampled.tokens, sampled.lengths, strict=True):
    ids, start = ids[:length], prompt.last + 1
    for marker in probes.find_marker(trained.tokenizer, ids, "[ZLT]", after=start):
        if marker.emit >= start + 6:  # else there are no earlier rows to set beside it
            texts.append(ids)
            rows.append([marker.emit, marker.token, *range(start + 2, marker.emit - 2)])
            marks = token_marks(trained.tokenizer, ids[start:])
            blocks.append(prompt.segmentation.extended(len(ids) - start, "answer", marks))
print(f"{len(texts)} of {len(prompts)} answers have the marker behind six tokens or more; the first:")
print(trained.decode(texts[0]))

# %% [markdown]
# ## One answer, two segmentations
#
# In blocks a turn's markup belongs to the turn. The very first token, where much attention rests whatever the
# text says (the sink), then counts as system prompt. With content only, markup is a region of its own.

# %%
two = dict(zip(("emit", "token"), rows[0], strict=False))
probes.attention_fractions(trained, texts[0], blocks[0], rows=two).figure("emit")

# %%
content = [one.content_only() for one in blocks]
of_content = probes.attention_fractions(trained, texts[0], content[0], rows=two)
of_content

# %% [markdown]
# ## All answers, trained against base
#
# At every layer: the share of the row's attention that goes to the system prompt's words, minus the mean of
# earlier rows of the same answer, in the trained model minus the same in the base. What the base does already
# cancels, and so does what training changed for all rows alike. The unit is the answer, one a question. Signs
# of whole answers are flipped, and the maximum over layers pays for looking at all of them.

# %%
shares = {}
for who, model in (("trained", trained), ("base", base)):
    found = probes.fractions_of(model, texts, [[one] for one in content], rows)
    region = content[0].names.index("system")
    shares[who] = [one.values[0][..., region].mean(2).numpy() for one in found]  # [row layer], mean of heads


def contrast(row):
    """Of one row (0 is emit, 1 is token) beyond the earlier ones, trained minus base: [answer layer]."""
    beyond = {who: np.stack([x[row] - x[2:].mean(0) for x in held]) for who, held in shares.items()}
    return beyond["trained"] - beyond["base"]


tests = {name: max_t(contrast(row), unit="answer", seed=SEED) for row, name in enumerate(("emit", "token"))}
for name, test in tests.items():
    print(f"{name}: {(test.p_max_t < 0.05).sum()} of {len(test.p)} layers beyond 5 %; {test.method}")
columns = {name: getattr(tests["emit"], name) for name in ("estimate", "low", "high", "t", "p_max_t")}
columns |= {f"{who}, emit": np.mean([x[0] for x in held], 0) for who, held in shares.items()}
pd.DataFrame(columns).rename_axis("layer").sort_values("t", key=abs, ascending=False).head(8).round(3)

# %% [markdown]
# `low` and `high` hold for all layers at once. A share is a mean over heads, and a head that looks need not
# use what it sees: what a look is worth, `patching.knock_out` asks, in the notebook on patching. All answers
# are of one adapter under one prompt. Other training runs are other units, and there are none here.
#
# ## The row over its text
#
# At the layer with the largest mean difference: chosen because it stands out, so it shows and tests nothing.

# %%
layer = int(tests["emit"].estimate.argmax())
site, seen = mi.Site("pattern", layer), {}
for who, model in (("trained", trained), ("base", base)):
    pattern = model.forward(texts[0][None], capture=[site], positions=[rows[0][0]], logits_at=())[site]
    seen[who] = pattern[0, :, 0].mean(0)
    seen[who][0] = torch.nan  # the sink would take all the colour
note = f"attention of emit at layer {layer}, mean over heads; each scaled by its own largest; n = 1 text"
mi.token_view(mi.pieces(base.tokenizer, texts[0]), seen, note=note)
