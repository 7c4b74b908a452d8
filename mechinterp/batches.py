"""Work in batches that shrink where memory runs out: a size that was guessed too large costs one try."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

Done = TypeVar("Done")


def shrinking(n: int, size: int, work: Callable[[range], Done]) -> Iterator[tuple[range, Done]]:
    """n items in order, `size` at a time: each batch with what `work` made of it.

    A batch that torch has no memory for is halved, for good. Raises OutOfMemoryError where one item does not
    fit.
    """
    start = 0
    while start < n:
        part = range(start, min(start + size, n))
        try:
            done = work(part)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = max(1, len(part) // 2)
            continue
        yield part, done
        start = part.stop
