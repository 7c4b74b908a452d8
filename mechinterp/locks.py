"""Who works in a run directory: one process alone, or several workers that hold single cells.

All are advisory locks on files, which the kernel frees when their process is killed. Between machines they
hold where the file system passes them on (NFS from version 4, Lustre mounted with `flock`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mechinterp.files import write_bytes

LOCK, HOLDER, HELD = ".lock", ".holder", ".held"


@dataclass
class SharedLock:
    """A directory's lock as several workers have it at once."""

    handle: int | None

    @property
    def is_locked(self) -> bool:
        return self.handle is not None

    def release(self) -> None:
        """Closing the file frees the lock."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


def take_lock(folder: Path, wait: float) -> FileLock:
    """A run directory for this process alone; RuntimeError that names who has it when it is not free."""
    lock = FileLock(folder / LOCK)
    holder = folder / HOLDER
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise RuntimeError(_in_use(folder)) from None
    write_bytes(holder, f"{os.getpid()}\n".encode())
    return lock


def share_lock(folder: Path) -> SharedLock:
    """A run directory beside other workers; RuntimeError where one process has it alone."""
    try:
        import fcntl
    except ImportError:
        raise RuntimeError("workers share a directory by POSIX locks, which this system lacks") from None
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise RuntimeError(_in_use(folder)) from None
    except OSError as error:
        os.close(handle)
        raise OSError(
            error.errno, f"no file locks here ({error.strerror}); choose another --out", str(folder)
        ) from None
    return SharedLock(handle)


def _in_use(folder: Path) -> str:
    holder = folder / HOLDER
    who = f"process {holder.read_text().strip()}" if holder.exists() else "workers that share it"
    return f"{folder} is in use by {who}; wait until it ends, or choose another --out"


@contextlib.contextmanager
def hold(path: Path) -> Iterator[bool]:
    """True while this process alone holds the file at `path`, False at once where another does."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether another process holds the file; looking takes it for a moment."""
    if not path.exists():
        return False
    with hold(path) as free:
        return not free
