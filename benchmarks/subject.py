"""Which model is measured, in which precision, where, and by how many threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EMBEDDED = "smollm2-135m-instruct-q4"


@dataclass(frozen=True)
class Subject:
    """All strings and numbers, so that a process of its own can be told the same."""

    name: str = EMBEDDED
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 2

    def load(self) -> Any:
        """The model, and this process set to the threads."""
        import torch

        from mechinterp.loading import load

        torch.set_num_threads(self.threads)
        return load(self.name, dtype=getattr(torch, self.dtype), device=self.device)

    def arguments(self) -> list[str]:
        """For a command line; `Subject.of` reads them back."""
        return [self.name, self.dtype, self.device, str(self.threads)]

    @classmethod
    def of(cls, name: str, dtype: str, device: str, threads: str) -> Subject:
        return cls(name, dtype, device, int(threads))
