"""One text to patch: its ids, what is read, and the named places that receive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Int
from torch import Tensor

from mechinterp.rows import one_text
from patching.metrics import Metric


@dataclass(frozen=True, eq=False)
class Case:
    """One text: the target's ids, the metrics read on it, and the positions of each named place.

    Where the source runs on other ids, `source_tokens` are those; of another length they need `alignment`,
    from positions of the target to positions of the source. `cluster` names the unit that the case belongs
    to, such as its question; `control` are the rows whose mean `MeanOver` puts in place.
    """

    tokens: Int[Tensor, "position"]
    metrics: tuple[Metric, ...]
    places: Mapping[str, tuple[int, ...]]
    source_tokens: Int[Tensor, "position"] | None = None
    alignment: Mapping[int, int] = field(default_factory=dict)
    name: str = ""
    cluster: str | None = None
    control: tuple[int, ...] = ()

    @property
    def donor_tokens(self) -> Int[Tensor, "position"]:
        """The ids that the source runs on."""
        return self.tokens if self.source_tokens is None else self.source_tokens

    def source_position(self, position: int) -> int:
        """Where the source stands for a position of the target."""
        return self.alignment.get(position, position) if self.alignment else position


def one_case(
    tokens: Int[Tensor, "1 position"] | Int[Tensor, "position"],
    metrics: Sequence[Metric],
    positions: Sequence[int] | Mapping[str, Sequence[int]] | None,
    source_tokens: Int[Tensor, "1 position"] | None,
    alignment: Mapping[int, int] | None,
) -> Case:
    """A single text; without positions, each one up to the last row that is read is a place of its own."""
    ids = one_text(tokens, many="patch_cases")
    if positions is None:
        positions = range(max((metric.at for metric in metrics), default=-1) + 1)
    named = positions if isinstance(positions, Mapping) else {str(p): (p,) for p in positions}
    places = {name: tuple(sorted(set(where))) for name, where in named.items()}
    source = None
    if source_tokens is not None:
        source = one_text(source_tokens, many="patch_cases", name="source_tokens")
    return Case(ids, tuple(metrics), places, source, alignment or {})


def check_cases(cases: Sequence[Case]) -> None:
    """Raises ValueError or IndexError for cases that no sweep can hold together."""
    if not cases:
        raise ValueError("no cases were given; give at least one text to patch")
    first = cases[0]
    names = [metric.name for metric in first.metrics]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"a case needs metrics of distinct names, not {names}; pass name= to tell them apart"
        )
    for number, case in enumerate(cases):
        if [metric.name for metric in case.metrics] != names or list(case.places) != list(first.places):
            raise ValueError(
                f"case {number} has metrics {[m.name for m in case.metrics]} and places {list(case.places)};"
                f" case 0 has {names} and {list(first.places)}: all need the same, in one order"
            )
        _check_positions(number, case)


def _check_positions(number: int, case: Case) -> None:
    n, n_source = len(case.tokens), len(case.donor_tokens)
    if n != n_source and not case.alignment:
        raise ValueError(
            f"case {number} has {n} target tokens and {n_source} source tokens; pass alignment=, from target"
            " positions to source positions, or texts of one length"
        )
    for name, positions in case.places.items():
        if not positions:
            raise ValueError(f"place {name!r} of case {number} holds no positions; leave the case out")
        for position in positions:
            if not 0 <= position < n:
                raise IndexError(f"place {name!r} of case {number} names {position}; it has 0..{n - 1}")
            if case.alignment and position not in case.alignment:
                raise ValueError(f"the alignment of case {number} says nothing of position {position}")
            if not 0 <= case.source_position(position) < n_source:
                raise IndexError(
                    f"position {position} of case {number} stands for {case.source_position(position)} of the"
                    f" source, which has 0..{n_source - 1}"
                )
