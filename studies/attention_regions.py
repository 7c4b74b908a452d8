"""The regions of a record: from its counts, or from the prompt that it was generated from."""

from collections.abc import Collection, Sequence

import torch

from mechinterp.chat import Prompt
from mechinterp.segmentation import ANSWER, HEADER, SYSTEM, USER, Segmentation, TokenMarks
from studies.attention_records import Example


def segmentation(example: Example, marks: TokenMarks) -> Segmentation:
    """Segmentation A of methods 9.4 over all ids: system, user, assistant_header, answer; `.content_only()`
    is B.

    `marks` describe every id: `structural_marks(example.ids, ...)`, or `chat.token_marks` with a tokenizer.
    Only control tokens count as template text; `prompt_segmentation` knows the role words too.
    """
    if len(marks.control) != len(example.ids):
        raise ValueError(
            f"marks describe {len(marks.control)} tokens, but {example.name} has {len(example.ids)}"
        )
    runs = (*example.blocks, (ANSWER, len(example.ids) - example.prompt_len))
    names = tuple(dict.fromkeys((SYSTEM, USER, HEADER, *(name for name, _ in runs))))
    region = torch.repeat_interleave(
        torch.tensor([names.index(name) for name, _ in runs]), torch.tensor([n for _, n in runs])
    )
    return Segmentation(names, region, marks.control, marks)


def prompt_segmentation(prompt: Prompt, example: Example, answer: TokenMarks) -> Segmentation:
    """The prompt's own segmentation with the answer behind it; `answer` marks the generated ids alone.

    Raises ValueError where the example was not generated from this prompt.
    """
    if tuple(prompt.tokens[0].tolist()) != example.ids[: example.prompt_len]:
        raise ValueError(f"{example.name} was generated from another prompt; render the one it came from")
    return prompt.segmentation.extended(len(example.ids) - example.prompt_len, ANSWER, answer)


def structural_marks(ids: Sequence[int], structural: Collection[int]) -> TokenMarks:
    """Marks from a set of ids alone, such as `PUBLISHED_IDS.structural`; no merged newline is known then."""
    control = torch.tensor([i in structural for i in ids], dtype=torch.bool)
    return TokenMarks(control, torch.zeros_like(control), torch.zeros_like(control))


def prompt_layout(prompt: Prompt) -> tuple[tuple[str, int], ...]:
    """A prompt's runs of (region, number of tokens), in order."""
    region: Tensor = prompt.segmentation.region
    values, lengths = torch.unique_consecutive(region, return_counts=True)
    names = prompt.segmentation.names
    return tuple((names[i], n) for i, n in zip(values.tolist(), lengths.tolist(), strict=True))
