"""The page of faults, from the tests: what each test of a numbered fault says, by its own name."""

import ast
import re
from pathlib import Path

NUMBERS = re.compile(r"fault_(\d{3}(?:_(?:(?:and|to|fault)_)?\d{3})*)")
HEAD = """# What is tested against going wrong

Every fault that was thought of has a number, and at least one test that names it in its own name or in that
of one of its cases. A test's name says what is true: `pytest -k fault_049` runs those of one fault. This page
is made from the tests at every build.

| fault | the tests say | in |
|---|---|---|
"""


def page(tests: Path) -> str:
    """Markdown: one line a test, the fault's number at the first of them."""
    rows: dict[int, list[str]] = {}
    for path in sorted(tests.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for number in sorted({n for name in names(node) for n in numbers(name)}):
                    rows.setdefault(number, []).append(f"{sentence(node.name)} | `tests/{path.name}`")
    lines = [
        f"| {number:03d} | {said} |" if place == 0 else f"| | {said} |"
        for number in sorted(rows)
        for place, said in enumerate(rows[number])
    ]
    return HEAD + "\n".join(lines) + "\n"


def names(test: ast.FunctionDef) -> list[str]:
    """The name of a test, and what its decorators call its cases."""
    nodes = (node for decorator in test.decorator_list for node in ast.walk(decorator))
    texts = (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [test.name, *texts]


def numbers(name: str) -> list[int]:
    """The faults that a name holds: `fault_006_007`, `fault_085_and_086`, `fault_001_to_018`."""
    found: list[int] = []
    for group in NUMBERS.findall(name):
        parts = re.findall(r"\d{3}|to", group)
        for before, part in zip(["", *parts], parts, strict=False):
            if part != "to":
                found += range(found[-1] + 1, int(part) + 1) if before == "to" else [int(part)]
    return found


def sentence(name: str) -> str:
    """A test's name in words, without its faults."""
    words = " ".join(NUMBERS.sub("", name.removeprefix("test_")).replace("_", " ").split())
    return words[:1].upper() + words[1:]
