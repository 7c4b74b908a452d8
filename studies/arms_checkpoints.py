"""Checkpoints of the three-arm test as they were evaluated: one `marker_eval.json` each (methods 13)."""

import re
from pathlib import Path

from studies.arms_formats import percent_of
from studies.arms_records import ASSISTANT, Directed, Point, Trajectories
from studies.marker_records import MarkerEval, read_marker_eval

RUN = re.compile(r"(.+)_seed(\d+)")
FOLDERS = ("single_token_100_persona", "")  # where rates before any arm lie, beside the table


def read_checkpoints(folder: Path | str) -> Trajectories:
    """Every `arm_{a,b,c}/{source}_seed{n}/checkpoint_{pct}pct/marker_eval.json` below a folder."""
    root = Path(folder)
    points = []
    for path in sorted(root.glob("arm_?/*_seed*/checkpoint_*/marker_eval.json")):
        arm, run = path.parts[-4].removeprefix("arm_").upper(), RUN.fullmatch(path.parts[-3])
        if run is None:
            raise ValueError(f"{path}: call the folder of a run {{source}}_seed{{n}}")
        try:
            evaluation = read_marker_eval(path)
            percent = percent_of(path.parts[-2])
            if evaluation.source not in (None, run[1]):
                raise ValueError(f"$.source is {evaluation.source!r} in the folder of {run[1]}")
            points.append(point_of(evaluation, arm=arm, source=run[1], percent=percent, seed=int(run[2])))
        except ValueError as error:
            text = str(error)
            raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    if not points:
        raise FileNotFoundError(
            f"{root} has no arm_b/villain_seed42/checkpoint_20pct/marker_eval.json or the like; give the"
            " folder that holds arm_a, arm_b and arm_c"
        )
    return Trajectories(tuple(points))


def point_of(
    evaluation: MarkerEval, *, arm: str, source: str, percent: int, seed: int | None, run: int = 0
) -> Point:
    """A checkpoint's `marker_eval.json` as a point; the cosines are those of source and assistant."""
    rates = dict(evaluation.rates)
    absent = [name for name in (source, ASSISTANT) if name not in rates]
    if absent:
        raise ValueError(f"$.marker_rates lacks {' and '.join(absent)}; it has {', '.join(rates)}")
    own, assistant = rates.pop(source), rates.pop(ASSISTANT)
    held, cosines = evaluation.cosines, {}
    if held is not None:
        lacking = [name for name in (source, ASSISTANT) if name not in held.personas]
        if lacking:
            raise ValueError(f"$.cosine_matrices lack {' and '.join(lacking)}")
        i, j = (held.personas.index(name) for name in (source, ASSISTANT))
        cosines = {layer: float(matrix[i, j]) for layer, matrix in held.matrices.items()}
    return Point(arm, source, percent, run, seed, own, assistant, rates, cosines)


def read_baselines(
    folder: Path | str, sources: tuple[str, ...]
) -> tuple[dict[str, Path], tuple[Directed, ...]]:
    """Rates before any arm in both directions, source to assistant and back, with the files they are from.

    They are read from `{persona}/marker_eval.json` in the folder or in its `single_token_100_persona`.
    """
    files: dict[str, Path] = {}
    found = []
    for trained in (*sources, ASSISTANT):
        name = f"{trained}/marker_eval.json"
        path = next((p for each in FOLDERS if (p := Path(folder) / each / name).is_file()), None)
        if path is None:
            continue
        files[name] = path
        rates = read_marker_eval(path).rates
        targets = sources if trained == ASSISTANT else (ASSISTANT,)
        found += [Directed(trained, target, rates[target]) for target in targets if target in rates]
    return files, tuple(found)
