"""Processes of ours beside this one: told what to do in words, and gone when whoever started them is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def started(module: str, *told: str, threads: int) -> subprocess.Popen[bytes]:
    """`python -m module told...` with so many threads; its standard input stays open while this one lives."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *told],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )


def stopped(process: subprocess.Popen[bytes]) -> None:
    """Ends it at once, where it has not ended."""
    process.kill()
    process.wait()


def follow_the_starter() -> None:
    """In a process so started: an interrupt is left to the starter, and its end is ours too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
