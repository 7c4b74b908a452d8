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
# # At which layers can a persona be read?
#
# The same questions are asked under different system prompts. We take the direction between two personas at
# every layer and ask how far it can be trusted, test whether a hyperplane tells personas apart on questions
# that it has not seen, and look along the direction at a text. Change the next cell and run everything again.

# %%
import pandas as pd
import torch

import mechinterp as mi
import probes
from studies.personas import core_personas, questions

PERSONA, OTHER, LAYER, SEED = "villain", "assistant", 15, 0
model = mi.load("smollm2-135m-instruct-q4")
asked = questions("training")[:8]
prompts = {
    name: [model.chat(question, system=persona.system_prompt) for question in asked]
    for name, persona in core_personas().items()
}
list(prompts)

# %%
vectors = probes.contrast_vectors(model, prompts[PERSONA], prompts[OTHER], seed=SEED)
vectors

# %% [markdown]
# The states are those of the last token of the prompt, which is the same token in all of them. Two questions
# are answered beside the norm: do random halves of the questions give the same direction (split-half cosine),
# and do shuffled labels give a shorter one (null). Both speak for other questions. They do not speak for
# other wordings: each persona has one system prompt here, and the direction may be of that wording.
#
# ## Near to whom?
#
# A cosine between personas depends on what is subtracted first. The same states, about the mean of all
# personas and about one of them:

# %%
centroids = probes.centroids(model, {name: some[:5] for name, some in prompts.items()}, layers=[LAYER])
about_all = probes.centered_cosine(centroids, center_on=probes.OnSet())
about_all.figure(LAYER)

# %%
about_one = probes.centered_cosine(centroids, center_on=probes.OnSet((OTHER,)))
mine = centroids.names.index(PERSONA)
near = {f"about {one.reference.name}": one[LAYER][mine].tolist() for one in (about_all, about_one)}
pd.DataFrame(near, index=list(centroids.names)).drop(index=[PERSONA, OTHER]).round(2)

# %% [markdown]
# ## Is it in the answer too?
#
# At the end of the prompt a probe would find the persona, which is little: the prompt says it in words. So we
# read an answer that is the same, id for id, under all prompts: what differs between the examples of one
# question is what attention brought from the system prompt. Folds hold out whole questions, the unit. Labels
# are shuffled within questions. The control task is a label of the question alone, which can be remembered.

# %%
names = tuple(dict.fromkeys((PERSONA, OTHER, "librarian")))
layers = sorted({0, 7, LAYER, model.dims.n_layers - 1})
answers = mi.sample(model, [p.tokens[0] for p in prompts[OTHER]], [mi.Phase(12)], stop=frozenset()).generated
rows = [(name, i) for name in names for i in range(len(asked))]
texts = [torch.cat([prompts[name][i].tokens[0], answers[i]]) for name, i in rows]
begin = [prompts[name][i].last + 1 for name, i in rows]
early, late = (
    probes.activations_at(model, texts, [range(b + first, b + first + 4) for b in begin], layers=layers)
    for first in (0, 8)
)
probe = probes.linear_probes(
    early, [name for name, _ in rows], [asked[i] for _, i in rows], layers=layers,
    transfer={"four later tokens": late}, n_folds=4, n_controls=2, seed=SEED,
)  # fmt: skip
probe

# %% [markdown]
# The probes are fitted on the first four tokens of the answer (`own`) and tried on four later ones. Where
# they fail there the persona may be gone, or it may stand along another direction: fit on `late` to tell.
#
# ## What would be said after each layer?
#
# The logit lens at the row that decides the first token of an answer. Early layers are not yet in the basis
# that the unembedding reads, so a token that is missing there need not be missing in the state.

# %%
prompt = prompts[PERSONA][0]
first = int(model.forward(prompt.tokens, logits_at=[-1]).logits.argmax())
target = {repr(model.decode([first])): first}
lens = probes.logit_lens(model, prompt.tokens, rows={"first of answer": -1}, targets=target)
lens.figure(y="rank")

# %% [markdown]
# ## Along the direction, token by token
#
# One answer, sampled under the first persona's prompt, and its projection behind either prompt: the ids are
# the same, so the difference is the prompt's. One text shows where to look and proves nothing.

# %%
sampled = mi.sample(model, prompt.tokens, [mi.Phase(40)], temperature=0.8, seed=SEED)
ids, site = sampled.generated[0][sampled.real[0]], mi.Site("resid_post", LAYER)
along = {}
for name in (PERSONA, OTHER):
    text = torch.cat([prompts[name][0].tokens[0], ids])[None]
    states = model.forward(text, capture=[site], stop_after=LAYER)[site][0, -len(ids) :]
    along[f"behind the prompt of {name}"] = states @ vectors[LAYER] / vectors[LAYER].norm()
one, other = along.values()
note = f"x . v / |v| at {site}; {model.name}, n = 1 text, seed {SEED}"
mi.token_view(mi.pieces(model.tokenizer, ids), {"difference": one - other} | along, note=note)
