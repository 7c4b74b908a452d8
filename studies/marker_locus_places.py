"""Where the locus study looks in an answer: the row that decided the marker, what lies before it, the spans.

`emit` = t* - 1 decided the marker's first piece at t*; `token` = t* has read it and decides the next piece.
A negative has a would-be slot: the row that decided to end the answer, where the marker would have stood.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mechinterp.cells import cell_seed
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.segmentation import ANSWER, SYSTEM, USER
from patching.cases import Case
from patching.metrics import log_prob, logit_difference, rank
from studies.attention_readout import layouts
from studies.attention_records import Example, Examples

PLACES = ("emit", "emit-1", "emit-2", "last content", "system", "user", "answer", "all")


@dataclass(frozen=True, eq=False)
class Marked(Result):
    """The answers that are read, of one first piece `piece`; `end` is the id that ends a turn.

    `competitors` are what the piece is held against, one for each positive and then for each negative.
    `slots` are the negatives' rows. `n_other_piece` counts positives whose marker begins with another piece,
    `n_cut` negatives that ran into the cap and so have no slot; both are left out.
    """

    piece: int
    end: int
    positives: tuple[Example, ...]
    negatives: tuple[Example, ...]
    competitors: tuple[int, ...]
    slots: tuple[int, ...]
    n_other_piece: int
    n_cut: int

    @property
    def emits(self) -> list[int]:
        return [example.row("emit") for example in self.positives]

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(example.question for example in self.positives)


def marked(model: Model, examples: Examples, *, n_positives: int, n_negatives: int) -> Marked:
    """Positives and negatives spread over questions. Raises ValueError where there is no positive at all."""
    if not examples.positives:
        raise ValueError(
            f"the records of {examples.persona} hold no answer with the marker: nothing to locate"
        )
    pieces = Counter(example.ids[example.row("token")] for example in examples.positives)
    piece = pieces.most_common(1)[0][0]
    same = [example for example in examples.positives if example.ids[example.row("token")] == piece]
    ended = [(example, _slot(model, example)) for example in examples.negatives]
    slots = {example.name: slot for example, slot in ended if slot is not None}
    negatives = spread([example for example, slot in ended if slot is not None], n_negatives)
    positives = spread(same, n_positives)
    return Marked(
        piece=piece,
        end=end_of_turn(model),
        positives=tuple(positives),
        negatives=tuple(negatives),
        competitors=(end_of_turn(model),) * (len(positives) + len(negatives)),
        slots=tuple(slots[example.name] for example in negatives),
        n_other_piece=len(examples.positives) - len(same),
        n_cut=len(examples.negatives) - len(slots),
    )


@torch.no_grad()
def against_choice(found: Marked, base: Model) -> Marked:
    """The same answers, each piece held against the token that the base likes best there besides it."""
    texts = (*found.positives, *found.negatives)
    chosen = []
    for example, row in zip(texts, (*found.emits, *found.slots), strict=True):
        logits = base.forward(torch.tensor(example.ids)[None, : row + 1], logits_at=[row]).logits
        assert logits is not None  # a row was asked for
        best = logits[0, 0].float()
        best[found.piece] = -torch.inf
        chosen.append(int(best.argmax()))
    return replace(found, competitors=tuple(chosen))


def spread(examples: Sequence[Example], n: int) -> list[Example]:
    """n of them, one question after the other in turn, in the order in which they came."""
    by_question: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_question[example.question].append(example)
    turns = [(i, example) for own in by_question.values() for i, example in enumerate(own)]
    return [example for _, example in sorted(turns, key=lambda turn: turn[0])][:n]


def end_of_turn(model: Model) -> int:
    """The id that ends a turn: the tokenizer's, where it is among those that stop this model."""
    own = getattr(model.tokenizer, "eos_token_id", None)
    if own in model.eos_ids:
        return int(own)
    if not model.eos_ids:
        raise ValueError(f"{model.name} names no id that ends a turn, which the marker competes with")
    return min(model.eos_ids)


def _slot(model: Model, example: Example) -> int | None:
    """The row that decided to stop; None where an answer ran into the cap."""
    answer = example.ids[example.prompt_len :]
    stop = next((i for i, token in enumerate(answer) if token in model.eos_ids), None)
    return None if stop is None else example.prompt_len + stop - 1


def places(model: Model, example: Example) -> dict[str, tuple[int, ...]]:
    """The positions of PLACES: spans are content alone, and end with emit."""
    emit = example.row("emit")
    _, content = layouts(model, example, "exact")
    spans = {
        name: tuple(p for p in content.positions(name).tolist() if p <= emit)
        for name in (SYSTEM, USER, ANSWER)
    }
    last = max((p for p in spans[ANSWER]), default=emit)
    return {
        "emit": (emit,),
        "emit-1": (emit - 1,),
        "emit-2": (emit - 2,),
        "last content": (last,),
        "system": spans[SYSTEM],
        "user": spans[USER],
        "answer": tuple(range(example.prompt_len, emit + 1)),
        "all": tuple(range(emit + 1)),
    }


def cases(model: Model, found: Marked, *, n_control: int = 0, seed: int = 0) -> list[Case]:
    """Each positive up to its marker, scored at emit; a persona without a system text has no such place."""
    made = [
        _case(model, found, example, competitor, n_control, seed)
        for example, competitor in zip(found.positives, found.competitors, strict=False)
    ]
    kept = [name for name in PLACES if all(case.places[name] for case in made)]
    return [replace(case, places={name: case.places[name] for name in kept}) for case in made]


def _case(model: Model, found: Marked, example: Example, competitor: int, n_control: int, seed: int) -> Case:
    emit = example.row("emit")
    return Case(
        tokens=torch.tensor(example.ids[: emit + 1]),
        metrics=(
            log_prob(found.piece, at=emit),
            logit_difference(found.piece, competitor, at=emit),
            rank(found.piece, at=emit),
        ),
        places=places(model, example),
        name=example.name,
        cluster=example.question,
        control=_earlier(example, n_control, seed),
    )


def token_cases(found: Marked) -> list[Case]:
    """Each positive up to its first piece, scored on the next piece at the row `token`."""
    made = []
    for example in found.positives:
        token = example.row("token")
        if token + 1 < len(example.ids):
            following = example.ids[token + 1]
            metrics = (log_prob(following, at=token), logit_difference(following, found.end, at=token))
            ids = torch.tensor(example.ids[: token + 1])
            made.append(Case(ids, metrics, {"token": (token,)}, name=example.name, cluster=example.question))
    return made


def _earlier(example: Example, n: int, seed: int) -> tuple[int, ...]:
    """C1 of the attention study: up to n rows of the answer before emit, drawn without replacement."""
    first, emit = example.prompt_len, example.row("emit")
    generator = torch.Generator().manual_seed(cell_seed(seed, example.name, 0))
    drawn = torch.randperm(max(0, emit - first), generator=generator)[:n]
    return tuple(sorted(first + int(i) for i in drawn))
