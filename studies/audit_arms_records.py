"""The records of a three-arm test: its table or its folder of checkpoints, read and analysed once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mechinterp.files import file_sha256
from studies.arms_analysis import ArmsAnalysis, analyse
from studies.arms_checkpoints import read_baselines, read_checkpoints
from studies.arms_formats import read_trajectories
from studies.arms_records import ARMS, ASSISTANT, Trajectories

ARM = "B"  # the critical one, whose trajectories are analysed
SOURCES = ("villain", "comedian", "kindergarten_teacher", "software_engineer")
PERCENTS, LAYERS = (20, 40, 60, 80, 100), (15, 20)


@dataclass(frozen=True, eq=False)
class Records:
    """The trajectories with their analysis; `digests` are of the files read, `missing` of those not there."""

    found: Trajectories
    analysis: ArmsAnalysis
    digests: Mapping[str, str]
    missing: tuple[str, ...]
    published: bool  # the table is that of the published study

    @property
    def sources(self) -> tuple[str, ...]:
        return self.found.sources


def read_records(path: Path | str) -> Records:
    """The table in a JSON file, or a folder of checkpoints; rates before any arm are looked for beside it.

    Raises FileNotFoundError where nothing is, ValueError with file and place of what is no such record.
    """
    place = Path(path)
    if place.is_dir():
        found = read_checkpoints(place)
        files = {p.relative_to(place).as_posix(): p for p in sorted(place.glob("arm_?/*/*/marker_eval.json"))}
        folder = place
    elif place.is_file():
        found, files, folder = read_trajectories(place), {place.name: place}, place.parent
    else:
        raise FileNotFoundError(
            f"there is no {place}; give the JSON file of the three-arm table (arm_a, arm_b, arm_c), or the"
            " folder of its checkpoints"
        )
    beside, directed = read_baselines(folder, found.sources)
    if not found.baselines:
        found = replace(found, baselines=directed)
        files |= beside
    due = [f"{name}/marker_eval.json" for name in (*found.sources, ASSISTANT)]
    missing = () if found.baselines else tuple(due)
    digests = {name: file_sha256(each) for name, each in files.items()}
    return Records(found, analyse(found, arm=ARM), digests, missing, is_published(found))


def is_published(found: Trajectories) -> bool:
    """The published table names neither model nor seeds; its sources, layers and checkpoints are known."""
    if found.about or found.seeds or found.sources != SOURCES or found.layers != LAYERS:
        return False
    lines = (found.line(arm, source) for arm in ARMS for source in SOURCES)
    return all(tuple(p.percent for p in line) == PERCENTS for line in lines)
