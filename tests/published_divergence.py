"""A small directory of divergence records in the published schema, with what was planted in it.

Stored figures are computed here with scipy on plain lists, so that the audit meets another computation.
Leakage follows the cosine of the wide centring; the own centring has lost half of it; `poet` leaks nowhere.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

PERSONAS = ("cook", "nurse", "poet", "spy", "judge", "sailor")
SOURCES = ("cook", "nurse", "poet", "spy")
OTHERS = tuple(f"cousin_{k}" for k in range(4))
QUESTIONS = tuple(f"Question {k}?" for k in range(5))
LAYERS = (10, 20)  # of the wide cosines; the own centring keeps the matrix of layer 20 alone
TOTAL = 200
PAIRS = [(s, t) for s in SOURCES for t in PERSONAS if s != t]


def write_divergence(folder: Path, *, commit: str = "own", seed: int = 0) -> None:
    """Write every file of both folders below `folder`."""
    generator = np.random.default_rng(seed)
    every = itertools.product(SOURCES, PERSONAS + OTHERS)
    wide = {pair: float(generator.uniform(-0.5, -0.1 if "poet" in pair else 0.9)) for pair in every}
    wide |= {(b, a): wide[a, b] for a, b in PAIRS if b in SOURCES}  # a cosine has no direction
    rates = {pair: _rate(pair, cosine, generator) for pair, cosine in wide.items()}
    js = _responses(wide, generator)
    kl = np.abs(generator.normal(0.2, 0.05, (6, 6))) * (1 - np.eye(6))
    cosine = _own(wide, generator)
    first, second = folder / "js_divergence", folder / "single_token_100_persona"
    _write(first / "divergence_matrices.json", _matrices(js, kl, commit))
    _write(first / "cosine_own_l20.json", {"cosine_matrix_l20": cosine.tolist(), "persona_names": PERSONAS})
    texts = {p: {q: [f"{p} answers {q}"] for q in QUESTIONS} for p in PERSONAS}
    _write(first / "generations.json", texts)
    _write(first / "analysis_results.json", _analysis(js, kl, cosine, rates, commit))
    _write(second / "cosine_leakage_correlation.json", {f"layer{n}": _wide(wide, rates, n) for n in LAYERS})
    for source in SOURCES:
        held = {t: rates[source, t] for t in PERSONAS + OTHERS}
        counted = {
            t: {
                "rate": r,
                "found": round(r * TOTAL),
                "total": TOTAL,
                "category": "original" if t in PERSONAS else "kin",
                "related_to": [],
            }
            for t, r in held.items()
        }
        _write(second / source / "marker_eval.json", counted)
        others = [r for t, r in held.items() if t != source]
        _write(second / source / "summary.json", {
            "source": source, "source_marker": held[source], "max_bystander": max(others),
            "mean_bystander": sum(others) / len(others), "n_personas": len(held),
        })  # fmt: skip


def _rate(pair: tuple[str, str], cosine: float, generator: np.random.Generator) -> float:
    if pair[0] == "poet":
        return 0.9 * (pair[1] == "poet")
    level = 0.4 + 0.4 * cosine + 0.1 * SOURCES.index(pair[0]) / 4 + generator.normal(0, 0.02)
    return round(float(np.clip(level, 0, 1)) * TOTAL) / TOTAL


def _responses(wide: dict[tuple[str, str], float], generator: np.random.Generator) -> np.ndarray:
    """[writer question persona persona]; a writer's own pairs lie farther apart on what it wrote."""
    base = np.zeros((6, 6))
    for i, j in itertools.combinations(range(6), 2):
        known = wide.get((PERSONAS[i], PERSONAS[j]), wide.get((PERSONAS[j], PERSONAS[i]), 0.0))
        base[i, j] = base[j, i] = 0.05 - 0.04 * known + generator.normal(0, 0.006)
    found = np.tile(base, (6, 5, 1, 1))
    for writer in range(6):
        found[writer, :, writer] *= 1 + writer / 5
        found[writer, :, :, writer] *= 1 + writer / 5
    spread = np.exp(generator.normal(0, 0.3, (6, 5, 6, 6)))
    found *= (spread + spread.transpose(0, 1, 3, 2)) / 2
    return found * (1 - np.eye(6))


def _own(wide: dict[tuple[str, str], float], generator: np.random.Generator) -> np.ndarray:
    found = np.eye(6)
    for i, j in itertools.combinations(range(6), 2):
        known = wide.get((PERSONAS[i], PERSONAS[j]), wide.get((PERSONAS[j], PERSONAS[i]), 0.0))
        found[i, j] = found[j, i] = 0.4 * known - 0.2 + generator.normal(0, 0.3)
    return np.clip(found, -1, 1)


def _matrices(js: np.ndarray, kl: np.ndarray, commit: str) -> dict[str, Any]:
    flat = js.reshape(30, 6, 6)
    mean = [[sum(r[i][j] for r in flat) / 30 for j in range(6)] for i in range(6)]
    values = {
        str(k): {f"{PERSONAS[i]}__{PERSONAS[j]}": r[i, j] for i, j in itertools.combinations(range(6), 2)}
        for k, r in enumerate(flat)
    }
    return {
        "js_matrix": mean, "kl_matrix": kl.tolist(), "kl_sym_matrix": ((kl + kl.T) / 2).tolist(),
        "kl_asym_matrix": np.abs(kl - kl.T).tolist(), "persona_names": PERSONAS, "per_prompt_js": values,
        "n_prompts": 30, "metadata": {"model": "tiny", "git_commit": commit, "n_questions": 5},
    }  # fmt: skip


def correlated(x: list[float], y: list[float]) -> dict[str, float]:
    (rho, p), (r, r_p) = stats.spearmanr(x, y), stats.pearsonr(x, y)
    return {"spearman_rho": rho, "spearman_p": p, "pearson_r": r, "pearson_p": r_p}


def _analysis(
    js: np.ndarray, kl: np.ndarray, cosine: np.ndarray, rates: dict[tuple[str, str], float], commit: str
) -> dict[str, Any]:
    mean = js.reshape(30, 6, 6).mean(0)
    pairs = list(itertools.combinations(range(6), 2))
    apart = [mean[i, j] for i, j in pairs]
    place = {name: i for i, name in enumerate(PERSONAS)}
    directed = [(place[s], place[t]) for s, t in PAIRS]
    leaks, ours = [rates[pair] for pair in PAIRS], [mean[i, j] for i, j in directed]
    found = {f"js_leakage_{name}": value for name, value in correlated(ours, leaks).items()}
    layers = {"layer_10": dict.fromkeys(("spearman_rho", "spearman_p", "pearson_r", "pearson_p"), 0.125)}
    both = list(itertools.combinations(SOURCES, 2))
    kls = [abs(kl[place[a], place[b]] - kl[place[b], place[a]]) for a, b in both]
    rho, p = stats.spearmanr(kls, [abs(rates[a, b] - rates[b, a]) for a, b in both])
    upper = np.triu_indices(6, 1)
    questions = [js[:, q][:, upper[0], upper[1]].ravel() for q in range(5)]
    return {
        "git_commit": commit,
        "discrimination": {
            "n_pairs": 15, "js_mean": np.mean(apart), "js_std": np.std(apart), "js_min": min(apart),
            "js_max": max(apart), "js_ratio": max(apart) / min(apart), "pass_std": bool(np.std(apart) > 0.05),
            "pass_ratio": max(apart) / min(apart) > 3,
        },
        "redundancy": {"layers": layers | {"layer_20": correlated(apart, [cosine[i, j] for i, j in pairs])}},
        "leakage_comparison": found | {
            "n_pairs": len(PAIRS),
            "directed_pairs": [
                {"source": s, "target": t, "leakage_rate": rates[s, t], "js_value": value}
                for (s, t), value in zip(PAIRS, ours, strict=True)
            ],
            "cosine_matched": layers | {"layer_20": correlated([cosine[i, j] for i, j in directed], leaks)},
        },
        "kl_asymmetry": {"n_pairs": 6, "spearman_rho": rho, "spearman_p": p, "pairs": []},
        "per_question": {
            "questions": [
                {"question": q, "js_mean": v.mean(), "js_std": v.std(), "js_min": v.min(), "js_max": v.max(),
                 "n_values": v.size, "uninformative": bool(v.std() / v.mean() < 0.2)}
                for q, v in zip(QUESTIONS, questions, strict=True)
            ],
            "n_uninformative": 0,
        },
    }  # fmt: skip


def _wide(
    wide: dict[tuple[str, str], float], rates: dict[tuple[str, str], float], layer: int
) -> dict[str, Any]:
    """Cosines of the earlier layer are turned over, so that layers can be told apart."""
    sign = 1 if layer == 20 else -1

    def row(s: str, t: str) -> dict[str, Any]:
        held = {"persona": t, "cosine_sim": round(sign * wide[s, t], 4)}
        return held | {"leakage_rate": rates[s, t], "category": "c"}

    rows = {s: [row(s, t) for t in PERSONAS + OTHERS if t != s] for s in SOURCES}
    flat = [row for each in rows.values() for row in each]
    core = [row for each in rows.values() for row in each if row["persona"] in PERSONAS]
    found: dict[str, Any] = {
        "poet": dict.fromkeys(("spearman_rho", "spearman_p"), float("nan")) | {"n_pairs": 9}
    }
    found["_aggregate"] = _ranked(flat)
    found["_per_category"] = {"original": _ranked(core)}
    return found | {"_per_source_detail": rows}


def _ranked(rows: list[dict[str, Any]]) -> dict[str, float]:
    rho, p = stats.spearmanr([row["cosine_sim"] for row in rows], [row["leakage_rate"] for row in rows])
    return {"spearman_rho": round(float(rho), 4), "spearman_p": float(p), "n_pairs": len(rows)}


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(value, default=lambda scalar: scalar.item())
    )  # a bare NaN, as one public file has
