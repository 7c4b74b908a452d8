"""The directory of a run: can it be written, how is it set aside, and what a full disk leaves."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from mechinterp.locks import HOLDER

# EFBIG is what a limit on file size gives (ulimit -f), EDQUOT a quota: the same to a user as a full disk.
DISK_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def probe(folder: Path) -> Path:
    """Make `folder` and write in it, before anything is computed; the folder with its links resolved."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"written to see that it can be")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(
            error.errno, f"cannot write a run here ({reason}); choose another --out", str(folder)
        ) from None
    return folder.resolve()


def set_aside(folder: Path) -> Path:
    """Rename a run directory to the first free name-1, name-2, ...; nothing is deleted."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(aside)
    (aside / HOLDER).unlink(missing_ok=True)
    return aside


@contextlib.contextmanager
def explained_full_disk(folder: Path, safe: Callable[[], int]) -> Iterator[None]:
    """Say of a full disk how many cells are safe and what to do; the error keeps its number."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        message = f"disk full, {safe()} cells safe; make room and give the same command again"
        raise OSError(error.errno, message, str(folder)) from error
