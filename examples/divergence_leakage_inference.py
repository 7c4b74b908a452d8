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
# # Divergence, leakage and honest inference
#
# A marker that was trained into one persona comes out under other personas' prompts too: it leaks. Does it
# leak to those whose outputs lie near? We measure both on a small scale, hold them together, and then ask of
# planted data, where the truth is known, which p would have told us.

# %%
import numpy as np
import pandas as pd
from tqdm import tqdm

import mechinterp as mi
import probes
from mechinterp.stats.dyadic import dyadic_spearman
from mechinterp.stats.intervals import wilson
from mechinterp.stats.sources import by_source
from studies import leakage
from studies.personas import core_personas, questions
from studies.trained import shipped_adapters

SEED, MARKER = 0, "[ZLT]"
base = mi.load("smollm2-135m-instruct-q4")
asked = questions("evaluation")
systems = {name: persona.system_prompt for name, persona in core_personas().items()}
sources = tuple(shipped_adapters())

# %% [markdown]
# ## How far apart are the outputs?
#
# Every persona answers in the base model. Each answer, as ids, is put behind every persona's prompt, and the
# Jensen-Shannon divergence of the next-token distributions is averaged over its tokens.

# %%
rows = [(name, question) for name in sources for question in asked[:2]]
prompts = [base.chat(question, system=systems[name]).tokens[0] for name, question in rows]
phase = mi.Phase(8, suppress=mi.stop_ids(base))  # eight tokens of text each
drawn = mi.sample(base, prompts, [phase], temperature=1.0, top_p=0.95, seed=SEED).generated
answers = [probes.Response(*row, tuple(ids.tolist())) for row, ids in zip(rows, drawn, strict=True)]
divergence = probes.output_divergence(base, {name: systems[name] for name in sources}, answers)
divergence.figure()

# %% [markdown]
# ## How far does a marker leak?
#
# By sampling: answers of one trained model under some personas' prompts, the marker looked for as text and as
# ids. Few answers leave wide intervals, and they count answers, not training runs.

# %%
trained = mi.with_adapter(base, shipped_adapters()["villain"])
rows = [(name, question) for name in ("villain", "comedian", "assistant") for question in asked[:4]]
prompts = [trained.chat(question, system=systems[name]).tokens[0] for name, question in rows]
said = mi.sample(trained, prompts, [mi.Phase(32)], temperature=1.0, top_p=0.95, seed=SEED)
found = [
    probes.detect(trained.tokenizer, ids[:length], MARKER, after=len(prompt))
    for ids, length, prompt in zip(said.tokens, said.lengths, prompts, strict=True)
]
counts = [(*row, marks) for row, marks in zip(rows, found, strict=True)]
probes.marker_rates(counts, model=trained.name, marker=MARKER, seeds=[SEED])

# %% [markdown]
# From the records: the counts that were taken of every shipped adapter when it was made.

# %%
config = leakage.Config(personas=sources, counts="recorded")
counted = {cell.key: leakage.recorded(cell, None, {}, config) for cell in leakage.cells(config)}
leaked = leakage.combine(config, counted)
leaked.figure()

# %% [markdown]
# ## Held together
#
# Nearness is minus the divergence. The pairs of one source share its training run, so the source is the unit;
# the pooled p takes every pair for one. `mean within` permutes targets inside each source, `blocks` gives
# sources each other's whole rows, `between` compares their means. A claim wants both permutations: within a
# source targets count as exchangeable, which a target that everyone leaks to is not.

# %%
pairs = [(source, target) for source in sources for target in sources if source != target]
js = pd.DataFrame(divergence.matrix().numpy(), index=sources, columns=sources)
nearness, rates = (np.array([-js.loc[p] for p in pairs]), np.array([leaked.rate(*p).estimate for p in pairs]))
held = by_source(nearness, rates, *zip(*pairs, strict=True), seed=SEED)
levels = ["pooled", "mean within", "blocks", "between"]
held.to_dataframe().set_index("figure").loc[levels].style.format(precision=3)

# %% [markdown]
# ## Which p would have told us?
#
# Planted: sources differ in the predictor and in the outcome, independently of each other, and pairs add only
# noise. Nothing predicts anything. This table was picked because it misleads; how often they do comes below.

# %%
n_sources, n_targets = 6, 10
labels = [(f"source {i}", f"target {j}") for i in range(n_sources) for j in range(n_targets)]
names = list(zip(*labels, strict=True))


def directed(seed):
    """Predictor and outcome of every pair: the source's own value and noise."""
    draw = np.random.default_rng(seed)
    each, pair = (n_sources, 1), (n_sources, n_targets)
    return [(2 * draw.normal(size=each) + draw.normal(size=pair)).ravel() for _ in range(2)]


planted = by_source(*directed(13), *names, seed=SEED)
planted.to_dataframe().set_index("figure").loc[levels].style.format(precision=6)

# %% [markdown]
# Symmetric matrices over the same personas have the same trouble: pairs share their nodes. So nodes are
# resampled for the bounds and relabelled for the p (Mantel). Planted again, with nothing but node effects.

# %%
nodes = [f"persona {i}" for i in range(11)]


def symmetric(seed):
    """Two matrices: the sum of both nodes' own values, and noise."""
    draw = np.random.default_rng(seed)
    values = [(draw.normal(size=len(nodes)), draw.normal(size=(len(nodes), len(nodes)))) for _ in range(2)]
    return [node[:, None] + node + (noise + noise.T) / 4 for node, noise in values]


dyadic = dyadic_spearman(*symmetric(47), names=nodes, seed=SEED)
one_line = {"rho": dyadic.estimate, "low": dyadic.low, "high": dyadic.high, "p": dyadic.p}
one_line |= {"naive p": dyadic.naive.p, "n nodes": dyadic.n_nodes, "n pairs": dyadic.n_pairs}
pd.DataFrame([one_line | {"bounds": dyadic.method, "test": dyadic.p_method}]).style.format(precision=6)

# %%
p = {name: [] for name in ("pooled (naive)", "within", "blocks", "dyadic (naive)", "dyadic (Mantel)")}
for seed in tqdm(range(400), unit="table", mininterval=1):
    one = by_source(*directed(seed), *names, permutations=199)
    for name, value in zip(p, (one.pooled.p, one.within_p, one.block_p), strict=False):
        p[name].append(value)
    if seed < 100:  # relabelling takes longer
        two = dyadic_spearman(*symmetric(seed), names=nodes, resamples=200)
        p["dyadic (naive)"].append(two.naive.p)
        p["dyadic (Mantel)"].append(two.p)
called = {name: wilson(sum(v < 0.05 for v in found), len(found), unit="table") for name, found in p.items()}
pd.DataFrame({name: vars(rate) for name, rate in called.items()}).T[["estimate", "low", "high", "n", "unit"]]

# %% [markdown]
# The share of tables without any association that each p calls significant at 5 %, from seed 0 on. What the
# honest ones cost: k sources have k! orders, and no p of whole sources is below one in that many. A p above
# 5 % is no finding of no association. And each source was trained once: what another training run of it would
# leak is in none of these numbers.
