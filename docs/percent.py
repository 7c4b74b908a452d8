"""The notebooks of `examples/`, which are scripts in the percent format, for the build of the pages."""

import re
from typing import Any

HEADER = re.compile(r"\A# ---\n.*?^# ---\n", re.DOTALL | re.MULTILINE)
KERNEL = {"name": "python3", "display_name": "python3", "language": "python"}


def read(text: str) -> Any:
    """A notebook of the build's kernel, whatever the script's own header says."""
    import jupytext

    notebook: Any = jupytext.reads(HEADER.sub("", text).lstrip(), fmt="py:percent")
    notebook.metadata["kernelspec"] = KERNEL
    return notebook
