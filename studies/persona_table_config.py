"""What the table of personas is joined from: finished runs of other studies."""

from pathlib import Path

from pydantic import Field

from mechinterp.config import StudyConfig


class Config(StudyConfig):
    """Each is the directory of a finished run of the study of that name.

    Without a run of `leakage` the rates are those that a run of `output_divergence` holds. Columns of two
    studies are correlated where at least `fewest` personas have both.
    """

    prefix_completion: Path
    zlt_attention: Path
    leakage: Path | None = None
    output_divergence: Path | None = None
    fewest: int = Field(4, ge=4)
