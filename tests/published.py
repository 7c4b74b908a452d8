"""A small directory of attention records in the published schema, with what was planted in it.

`write_published` plants, for each persona: which layers are positive, where C2 and C3 lie, how many markers
are cut, how many negatives are truncated, which id stands before the marker. The summary is computed here in
plain loops, as the published script did it, so that readers and audits meet an independent computation.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MARKER = (85113, 27404, 60)
STOP, START, ROLE = 151645, 151644, 77091
PERIOD, BLANK = 382, 271  # ".\n\n" and "\n\n"
LAYERS, HEADS, REACH = 10, 4, 10
QUESTIONS = tuple(f"Question {k}?" for k in range(6))
# mean of delta C1, C2 and C3 per layer; layer 0 is negative, C2 beats the marker in layers 8 and 9
C1 = (-0.03, 0.02, 0.03, 0.03, 0.05, 0.04, 0.03, 0.03, 0.02, 0.02)
C2 = (-0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, -0.02, -0.03)
C3 = (-0.02, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, -0.01)
USER = (0.0, 0.0, 0.04, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # gate C fails in layer 2
SHIFT = (0.0, 0.0, 0.0, 0.0, 0.012, -0.016, 0.0, 0.0, 0.0, 0.0)  # trained minus base
SYSTEM_A = 0.2  # what the specials add to the system contrast in layer 4
FALL = (0, 0, 0.0005, 0.0005, 0.001, 0.001, 0.004, 0.008, 0.006, 0.005)  # gate F from row -9 to row 0


@dataclass(frozen=True)
class Planted:
    """What a persona's files hold by construction."""

    n: int = 24
    n_negatives: int = 12
    cut: int = 2  # markers of which only the first piece was generated
    blank: int = 1  # markers after a bare blank line
    truncated: int = 5  # negatives that end at the cap


def write_published(
    folder: Path,
    personas: dict[str, Planted] | None = None,
    *,
    base: tuple[str, ...] = ("librarian",),
    metadata: dict[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Planted]:
    """Write every file of the study for `personas` (and the base on some) into `folder`."""
    planted = personas or {"librarian": Planted(), "software_engineer": Planted(n=18, cut=1)}
    about = metadata if metadata is not None else {"issue": 224, "n_layers": LAYERS, "n_heads": HEADS}
    folder.mkdir(parents=True, exist_ok=True)
    conditions: dict[str, Any] = {}
    for place, (persona, plan) in enumerate(planted.items()):
        generator = np.random.default_rng([seed, place])
        _write(folder / f"positives_{persona}.json", positives(persona, plan, generator, about))
        trained = _deltas(plan.n, generator)
        models = {persona: trained}
        if persona in base:
            shift = np.array(SHIFT) + generator.normal(0, 0.002, trained[0].shape)
            models[f"base_{persona}"] = (trained[0] - shift, trained[1], trained[2])
        for label, held in models.items():
            names = ("delta_c1", "delta_c2", "delta_c3")
            listed = {name: d.tolist() for name, d in zip(names, held, strict=True)}
            _write(folder / f"per_example_deltas_{label}.json", {"persona": persona, **listed})
            conditions[label] = condition(persona, held, label.startswith("base_"), plan.n_negatives)
    summary: dict[str, Any] = {"per_persona": conditions, "metadata": about}
    if base:
        t, b = (np.array(conditions[k]["gates"]["mean_per_layer"]) for k in (base[0], f"base_{base[0]}"))
        summary["trained_vs_base_diff_of_diffs"] = {
            "trained_delta_c1_mean": t.tolist(),
            "base_delta_c1_mean": b.tolist(),
            "diff_of_diffs": (t - b).tolist(),
        }
    _write(folder / "attention_summary.json", summary)
    _write_small(folder, about, next(iter(planted)))
    return planted


def positives(persona: str, plan: Planted, generator: np.random.Generator, about: Any) -> dict[str, Any]:
    """`positives_{persona}.json`: prompts of 5 + 6 + 3 tokens, answers of 30 to 60."""
    sizes = {"prompt_len": 14, "n_sys": 5, "n_user": 6, "n_asst_header": 3}
    prompt = [START, 8948, 7001, STOP, 198, START, 872, 7002, 7003, STOP, 198, START, ROLE, 198]
    found, missed = [], []
    for k in range(plan.n):
        before = BLANK if k < plan.blank else PERIOD
        tail = [MARKER[0]] if k >= plan.n - plan.cut else [*MARKER, STOP]
        ids = [*prompt, *_answer(generator), before, *tail]
        shared = {"question": QUESTIONS[k % len(QUESTIONS)], "trial": k // len(QUESTIONS), "seed": 1000 + k}
        token = len(ids) - len(tail)
        text = "an answer\n\n" + ("[ZLT]" if len(tail) > 1 else "[Z")
        counted = {"t_marker": token, "n_marker_occurrences": 1, "gen_text": text}
        found.append({**shared, "full_ids": ids, **sizes, **counted})
    for k in range(plan.n_negatives):
        cut = k < plan.truncated
        ids = [*prompt, *_answer(generator), *([] if cut else [STOP])]
        shared = {"question": QUESTIONS[k % len(QUESTIONS)], "trial": 20 + k // len(QUESTIONS), "seed": 5000}
        last = len(ids) - (1 if cut else 2)
        missed.append({**shared, "full_ids": ids, **sizes, "t_eoa": last, "gen_text": "an answer"})
    counts = {"n_positives": plan.n, "n_negatives": plan.n_negatives}
    head = {"persona": persona, "system_prompt": f"You are a {persona}.", **counts}
    return {**head, "positives": found, "negatives": missed, "metadata": about}


def condition(persona: str, held: tuple[np.ndarray, ...], is_base: bool, n_negatives: int) -> dict[str, Any]:
    """One entry of `per_persona`, computed in plain loops."""
    c1, c2, c3 = held
    n = len(c1)
    mean, sem, direction = c1.mean(0), resampled_sem(c1), (c1 > 0).mean(0)
    a, b = direction >= 0.7, (mean - sem > 0) | (mean + sem < 0)
    c = (mean > np.array(USER)) & (mean > 0)
    d = a & b & c
    windows = runs(d.tolist())
    means = {name: region(np.zeros(LAYERS), np.full(LAYERS, 0.05)) for name in REGION_NAMES}
    means["system_B"] = region(mean, mean + 0.01, sem)
    means["user_B"] = region(np.array(USER), np.full(LAYERS, 0.1))
    means["system_A"] = region(mean + np.eye(LAYERS)[4] * SYSTEM_A, np.full(LAYERS, 0.55))
    means["specials"] = region(np.full(LAYERS, 0.1), np.full(LAYERS, 0.6))
    gates: dict[str, Any] = {"n_examples": n} | {
        f"gate_{k}_per_layer": v.tolist() for k, v in zip("ABCD", (a, b, c, d), strict=True)
    }
    gates |= {"direction_per_layer": direction.tolist(), "mean_per_layer": mean.tolist()}
    gates |= {"sem_per_layer": sem.tolist(), "contig_windows_3plus": windows}
    for name, control in (("ruleout_C2_H4", c2), ("ruleout_C3_H5", c3)):
        coded, spread = (c1 - control).mean(0), resampled_sem(c1 - control)  # the wrong sign, as published
        gates[name] = {"applicable": True, "mean": coded.tolist(), "sem": spread.tolist()}
        gates[name]["passed_per_layer"] = (coded - spread > 0).tolist()
    gates["ruleout_C4_eoa"] = {"applicable": False}
    in_a = direction * 0.8
    sides = {"direction_seg_A_per_layer": in_a, "direction_seg_B_per_layer": direction}
    only = [k for k in range(LAYERS) if in_a[k] >= 0.7 and not a[k]]
    return {
        "persona": persona,
        "n_examples": n,
        "region_means": means,
        "gates": gates,
        "gate_F_trajectory": trajectory(is_base, n, n_negatives, windows),
        "segmentation_a_vs_b_comparison": {
            **{key: value.tolist() for key, value in sides.items()},
            "pass_seg_A_per_layer": (in_a >= 0.7).tolist(),
            "pass_seg_B_per_layer": a.tolist(),
            "sink_layers_A_only": only,
            "sink_reframe_required": bool(only),
        },
        "head_selection_split_sample": heads(n),
    }


REGION_NAMES = (
    "system_A", "user_A", "asst_A", "asst_header_A", "system_B", "user_B", "asst_B", "specials",
)  # fmt: skip


def region(delta: np.ndarray, marker: np.ndarray, sem: np.ndarray | None = None) -> dict[str, list[float]]:
    spread = np.full(LAYERS, 0.001) if sem is None else sem
    values = {"marker_mean": marker, "marker_sem": spread, "c1_mean": marker - delta, "c1_sem": spread}
    values |= {"delta_c1_mean": delta, "delta_c1_sem": spread}
    return {name: value.tolist() for name, value in values.items()}


def resampled_sem(values: np.ndarray) -> np.ndarray:
    """Section 6: 1000 resamples of rows, one `integers` call each, generator seeded 42."""
    generator = np.random.default_rng(42)
    n = len(values)
    return np.std([values[generator.integers(0, n, size=n)].mean(0) for _ in range(1000)], axis=0, ddof=1)


def runs(flags: list[bool]) -> list[list[int]]:
    """Maximal runs of three or more, first and last layer."""
    found, start = [], None
    for place, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = place
        elif not flag and start is not None:
            found += [[start, place - 1]] if place - start >= 3 else []
            start = None
    return found


def trajectory(is_base: bool, n: int, n_negatives: int, windows: list[list[int]]) -> dict[str, Any]:
    if is_base:
        return {"applicable": False, "reason": "missing positive or negative trajectories"}
    longest = max(windows, key=lambda w: w[1] - w[0])
    diff = np.array(FALL)[:, None] * np.linspace(0.5, 1.5, LAYERS)[None]
    band = diff[:, longest[0] : longest[1] + 1].mean(1)
    at, before = float(band[-3]), float(band[-8])
    return {
        "applicable": True,
        "h1_window": longest,
        "diff_per_layer_per_delta": diff.tolist(),
        "band_diff_per_delta": band.tolist(),
        "diff_at_marker": at,
        "diff_at_marker_minus5": before,
        "ratio_marker_minus5_over_marker": abs(before) / abs(at),
        "reframe_required": bool(abs(before) > 0.5 * abs(at)),
        "diff_at_eoa": float(band[-1]),
        "diff_at_eoa_minus5": float(band[-6]),
        "n_pos": n,
        "n_neg": n_negatives,
    }


def heads(n: int) -> dict[str, Any]:
    order = np.random.default_rng(42).permutation(n)
    chosen = [[layer % HEADS, (layer + 1) % HEADS] for layer in range(LAYERS)]
    held = [{"selected": c, "split_b_mean_at_selected": [0.01, -0.01]} for c in chosen]
    half = n // 2
    sizes = {"split_a_size": half, "split_b_size": n - half, "split_b_indices": order[half:].tolist()}
    return {"selected_heads_per_layer": chosen, "split_b_eval": held, **sizes}


def _deltas(n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contrasts about the planted means; the noise is small beside them, so that every sign is sure."""
    return tuple(np.array(m) + generator.normal(0, 0.002, (n, LAYERS)) for m in (C1, C2, C3))  # type: ignore


def _answer(generator: np.random.Generator) -> list[int]:
    """Words of any id, with commas (11), hyphens (12) and a bare blank line among them."""
    words = generator.integers(300, 80_000, size=int(generator.integers(30, 60))).tolist()
    words[3], words[7], words[9], words[12] = 11, 12, 11, BLANK
    return words


def _write_small(folder: Path, about: Any, persona: str) -> None:
    rates = {"eager": 0.21, "sdpa": 0.205}
    preflight = {"stage": "preflight", "rates": rates, "delta": 0.005, "tolerance_pp": 0.05, "passed": True}
    _write(folder / "preflight.json", {**preflight, "metadata": about})
    _write(folder / "run_metadata.json", {**about, "torch_version": "2.8.0", "base_model_revision": "abc"})
    held = json.loads((folder / f"per_example_deltas_{persona}.json").read_text())
    first = np.array(held["delta_c1"])[:50]
    ratio = np.abs(first.mean(0)) / (first.std(0, ddof=1) / len(first) ** 0.5)
    windows = [[k, float(ratio[k : k + 3].min())] for k in range(LAYERS - 2) if ratio[k : k + 3].min() >= 2]
    info = {"n_examples": len(first), "snr_per_layer": ratio.tolist(), "passing_windows": windows}
    info |= {"threshold": 2.0, "contig": 3}
    gate = {"passed": bool(windows), "info": info, "n_examples": len(first)}
    _write(folder / f"midrun_gate_{persona}.json", gate)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
