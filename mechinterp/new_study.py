"""`mechinterp new study NAME`: a study that works, with its test, to be made into another."""

import keyword
from importlib.resources import files
from pathlib import Path

from mechinterp.files import write_bytes


def write_study(name: str, folder: Path) -> tuple[Path, Path]:
    """`NAME.py` in `folder`, and its test beside it (in `../tests` where there is one).

    Raises ValueError for a name that Python cannot import, FileExistsError where a file is there already.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise ValueError(f"{name!r} is no name of a module; write lower-case letters, digits and _")
    beside = folder.resolve().parent / "tests"
    study = folder / f"{name}.py"
    test = (beside if beside.is_dir() else folder) / f"test_{name}.py"
    for path in (study, test):
        if path.exists():
            raise FileExistsError(f"{path} is there already; choose another name or --folder")
    folder.mkdir(parents=True, exist_ok=True)
    templates = files("mechinterp") / "templates"
    where = f'Path(__file__).with_name("{name}.py")'
    if test.parent != folder:
        where = f'Path(__file__).parents[1] / "{folder.resolve().name}" / "{name}.py"'
    for template, path in (("study.txt", study), ("study_test.txt", test)):
        text = (templates / template).read_text()
        write_bytes(path, text.replace("WHERE", where).replace("NAME", name).encode())
    return study, test
