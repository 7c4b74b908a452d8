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
# # Steered, then free: does a persona stay?
#
# A role's vector is added to the stream for some tokens, then taken away. We follow the projection on the
# vector before and after the release. While the vector is added its own length is in the projection, so only
# the free tokens say anything about the persona.

# %%
import pandas as pd
import torch

import mechinterp as mi
import probes
from mechinterp.stats.halflife import half_life
from mechinterp.stats.intervals import mean_interval
from mechinterp.stats.paired import sign_flip
from studies.personas import questions, roles

ROLE, LAYER, SEEDS = "medieval_bard", 15, range(6)
HOW = {"n_steer": 16, "n_free": 24, "temperature": 0.8, "top_p": 0.95}
model, site = mi.load("smollm2-135m-instruct-q4"), mi.Site("resid_post", LAYER)


def asked(question, who):
    """The question, put to the plain assistant or to the role."""
    return model.chat(question, system=roles()[who].system_prompt)


some = questions("training")[:6]
sides = ([asked(question, who) for question in some] for who in (ROLE, "control"))
vector = probes.contrast_vectors(model, *sides, layers=[LAYER])[LAYER]
question = questions("personal_reflection")[0]
plain, told = asked(question, "control"), asked(question, ROLE)

# %% [markdown]
# ## How strongly?
#
# One times the vector means something else for every role. The strength is set so that steered text lies a
# given number of nats from what the unsteered model would say of the same ids (95th percentile over tokens).

# %%
strength = probes.calibrate(
    model, [plain], vector, site=site, target=probes.EqualKL(2.0), start=0.5, n_tokens=8,
    temperature=0.8, seeds=SEEDS[:2], tolerance=0.2, max_tries=5,
)  # fmt: skip
strength

# %% [markdown]
# ## Four arms with the same draws
#
# The floor is the assistant, left alone. The ceiling is told the role and not steered. The random arm gets a
# direction of the same length, another one each run: whatever any push of this size does. Runs of one seed
# draw alike, so arms are paired by seed, and the run is the unit. All answer one question.

# %%
push = strength.coefficient * vector
noise = torch.randn(len(SEEDS), len(vector), generator=torch.Generator().manual_seed(0))
random = noise / noise.norm(dim=1, keepdim=True) * push.norm()
arms = {"steered": (plain, push), "floor": (plain, None), "ceiling": (told, None)}
trials = [probes.Trial(arm, prompt, added, seed) for arm, (prompt, added) in arms.items() for seed in SEEDS]
trials += [probes.Trial("random", plain, added, seed) for seed, added in zip(SEEDS, random, strict=True)]
run = probes.release(model, trials, {ROLE: vector}, site=site, cache="fresh", **HOW)
run.figure()

# %%
free = {arm: run.curves(arm, ROLE)[:, run.free()].nanmean(1) for arm in dict.fromkeys(run.arms)}
table = {}
for arm, values in free.items():
    bounds, beside = mean_interval(values, method="t"), sign_flip(values - free["floor"])
    p = None if arm == "floor" else beside.p
    table[arm] = {"mean": bounds.estimate, "low": bounds.low, "high": bounds.high, "p beside floor": p}
pd.DataFrame(table).T.assign(n=len(SEEDS)).round(3)  # projection over the free tokens, 95 % t over runs

# %% [markdown]
# The exact test over n runs has no p below 2 in 2 to the n; what does not reach 5 % here is not shown to be
# nothing, and one question does not speak for others.
#
# ## Fresh or carried?
#
# The steered tokens left keys and values behind. `fresh` forgets them and reads the same ids again without
# the vector: only the text is left. `carry` keeps them. Paired by seed, the difference is the cache's.

# %%
carried = probes.persistence(
    model, plain, vector, site=site, strength=strength.coefficient, cache="carry", seeds=SEEDS, **HOW
)
kept = carried.curves("steered", "vector")[:, carried.free()]
sign_flip(kept.nanmean(1) - free["steered"])

# %% [markdown]
# A half-life is given only where there is an excess over the floor and a window to see it decay in. This fit
# takes the floor as known, so its `p_excess` can be smaller than the paired p above.

# %%
floor = float(free["floor"].mean())
left = {"fresh": run.curves("steered", ROLE)[:, run.free()], "carry": kept}
decay = {cache: half_life(curves, floor=floor) for cache, curves in left.items()}
for cache, found in decay.items():
    print(f"{cache}: {found.reason or 'identified'}; n = {found.n} runs, seeds {SEEDS[0]} to {SEEDS[-1]}")
columns = ["estimate", "low", "high", "p_excess", "window"]
pd.DataFrame([vars(found) for found in decay.values()], index=list(decay))[columns]

# %% [markdown]
# ## One run, token by token

# %%
row = run.rows("steered")[0]
real = run.real[row]
words = mi.pieces(model.tokenizer, run.generated[row][real])
values = run.projections[row, :, 0][real].tolist()
words.insert(run.n_steer, " ⟨released⟩ ")
values.insert(run.n_steer, float("nan"))
mi.token_view(words, {f"projection on {ROLE}": values}, note=f"{model.name}, {site}, seed {run.seeds[row]}")
