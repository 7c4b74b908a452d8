"""Every notebook runs from top to bottom, and what it shows is so."""

import ast
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def cells_of(path: Path) -> list[str]:
    """The code cells of a notebook in the percent format."""
    cells, markdown = [""], False
    for line in path.read_text().splitlines(keepends=True):
        if line.startswith("# %%"):
            markdown = "[markdown]" in line
            cells.append("")
        elif not markdown:
            cells[-1] += line
    return [cell for cell in cells if cell.strip() and not cell.startswith("# ---")]


def run(path: Path, **given: object) -> tuple[dict, list[object]]:
    """Its names after the last cell, and what each cell shows: the value of its last line."""
    names: dict = {"__name__": "notebook", **given}
    shown = []
    for number, cell in enumerate(cells_of(path)):
        tree = ast.parse(cell)
        last = tree.body[-1]
        if isinstance(last, ast.Expr):
            tree.body.pop()
        exec(compile(tree, f"{path.name} cell {number}", "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), path.name, "eval"), names))
    return names, shown


@pytest.mark.real
@pytest.mark.timeout(300)
def test_the_marker_is_located_in_a_notebook(real, monkeypatch):
    import mechinterp.loading

    monkeypatch.setattr(mechinterp.loading, "load", lambda name: real)
    names, shown = run(EXAMPLES[[path.stem for path in EXAMPLES].index("marker_locus")])
    figures = [one for one in shown if type(one).__name__ == "Figure"]
    assert len(figures) == 4 and all(figure.layout.meta["subtitle"] for figure in figures)
    recovered = names["grid"].recovered()[0, :, -1]
    assert float(recovered[-1]) == pytest.approx(1, abs=1e-3), "adapter and base share norm and head"
    assert 0 < names["decided"] < names["trained"].dims.n_layers - 1
    assert float(names["grid"].recovered(null="random").abs().mean()) < float(recovered.abs().mean())
    assert names["lens"].trained.rank[0, -1, 0] < names["lens"].base.rank[0, -1, 0]


def test_every_notebook_has_a_test_of_its_own():
    tests = Path(__file__).read_text()
    for path in EXAMPLES:
        assert f'index("{path.stem}")' in tests, f"{path.name} is run by no test"
