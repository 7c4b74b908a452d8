"""One pass at a time on one tree of modules: hooks sit on modules, and a second thread would run into them.

A second thread waits. A pass that is asked for inside a pass of the same thread (by an `Apply`) is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, get_ident
from typing import Any
from weakref import WeakKeyDictionary


@dataclass(eq=False)
class _Turn:
    lock: Any = field(default_factory=Lock)
    thread: int | None = None


_turns: "WeakKeyDictionary[Any, _Turn]" = WeakKeyDictionary()  # two backends over one model must share a turn
_guard = Lock()


@contextmanager
def turn(backend: Any) -> Iterator[None]:
    """Waits until no other pass runs on the backend's modules, and holds them for the length of this one."""
    with _guard:
        mine = _turns.setdefault(getattr(backend, "model", backend), _Turn())
    if mine.thread == get_ident():
        raise RuntimeError(
            "this model is in the middle of a pass; a function given to Apply cannot run the model again:"
            " compute what it needs before the pass"
        )
    with mine.lock:
        mine.thread = get_ident()
        try:
            yield
        finally:
            mine.thread = None
