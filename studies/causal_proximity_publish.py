"""The three arms in the published schemas (methods 13): the table, and one `marker_eval.json` each."""

from pathlib import Path
from typing import Any

from studies.arms_formats import write_trajectories
from studies.arms_records import ORIGINAL
from studies.causal_proximity_result import CausalProximity, Checkpoint
from studies.divergence_records import Cosines
from studies.marker_records import MarkerEval, write_marker_eval

TABLE = "three_arms.json"


def publish(config: Any, result: CausalProximity, folder: Path) -> None:
    """`three_arms.json` and `arm_b/villain_seed42/checkpoint_20pct/marker_eval.json` and the like.

    Checkpoints of other adapters stand in a folder named after them, of later runs in one with the number.
    """
    folder.mkdir(exist_ok=True)
    about = {"model": result.model, "marker": result.marker}
    write_trajectories(folder / TABLE, result.trajectories, **about)
    for checkpoint in result.checkpoints:
        run = "" if not checkpoint.run else f"run{checkpoint.run}"
        place = folder / ("" if checkpoint.adapter == ORIGINAL else checkpoint.adapter) / run
        name = f"arm_{checkpoint.arm.lower()}/{checkpoint.source}_seed{checkpoint.seed}"
        where = place / name / f"checkpoint_{checkpoint.percent}pct"
        where.mkdir(parents=True, exist_ok=True)
        write_marker_eval(where / "marker_eval.json", _evaluation(checkpoint, result.names))


def _evaluation(checkpoint: Checkpoint, names: tuple[str, ...]) -> MarkerEval:
    measured = checkpoint.measured
    layers = zip(measured.layers, measured.cosines, strict=True)
    matrices = {layer: matrix.double().numpy() for layer, matrix in layers}
    return MarkerEval(
        measured.rates, checkpoint.source, f"checkpoint_{checkpoint.percent}pct", Cosines(names, matrices)
    )
