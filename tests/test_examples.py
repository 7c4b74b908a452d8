"""Every notebook runs from top to bottom, and what it shows is so."""

import ast
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mechinterp.coloured_text import TokenView

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


@pytest.fixture
def session_model(real, monkeypatch):
    """What the notebooks load, loaded once."""
    import mechinterp.loading

    monkeypatch.setattr(mechinterp.loading, "load", lambda name: real)


def figures_of(shown: list[object]) -> list:
    """The figures among what was shown; each says of which model, how many of what, and which seed."""
    found = [one for one in shown if type(one).__name__ == "Figure"]
    for figure in found:
        assert " · n = " in figure.layout.meta["subtitle"] and "seed" in figure.layout.meta["subtitle"]
    return found


def views_of(shown: list[object]) -> list[TokenView]:
    return [one for one in shown if isinstance(one, TokenView)]


def html_of(shown: list[object]) -> list[str]:
    """What a notebook shows of the rest in words: each is a table, a text by token, or both with its name."""
    rest = [one for one in shown if type(one).__name__ != "Figure" and hasattr(one, "_repr_html_")]
    found = [one._repr_html_() for one in rest]
    assert all("<table" in one or 'class="token-view"' in one for one in found)
    return found


@pytest.mark.real
@pytest.mark.timeout(300)
def test_the_marker_is_located_in_a_notebook(session_model):
    names, shown = run(EXAMPLES[[path.stem for path in EXAMPLES].index("patching_trained_into_base")])
    assert len(figures_of(shown)) == 4
    recovered = names["grid"].recovered()[0, :, -1]
    assert float(recovered[-1]) == pytest.approx(1, abs=1e-3), "adapter and base share norm and head"
    assert 0 < names["decided"] < names["trained"].dims.n_layers - 1
    assert float(names["grid"].recovered(null="random").abs().mean()) < float(recovered.abs().mean())
    assert names["lens"].trained.rank[0, -1, 0] < names["lens"].base.rank[0, -1, 0]
    (view,) = views_of(shown)
    chances = view.values["p(marker begins next)"]
    assert chances.index(max(chances)) == names["emit"] - names["answer"][0] and max(chances) > 0.5
    assert names["without"] < 0.01


@pytest.mark.real
@pytest.mark.timeout(300)
def test_a_persona_is_read_in_the_states_of_an_answer_that_is_the_same_under_every_prompt(session_model):
    names, shown = run(EXAMPLES[[path.stem for path in EXAMPLES].index("probing_layers")])
    vectors, probe, at = names["vectors"], names["probe"], names["LAYER"]
    assert float(vectors.split_half[at]) > 0.5 and float(vectors.null_percentile[at]) == 100
    assert names["about_all"][at].diagonal().allclose(torch.ones(11), atol=1e-4)
    column = probe.layers.index(at)
    assert float(probe.accuracy[0, column] - probe.shuffled.mean(0)[column]) > 0.15
    assert float(probe.p[column]) == pytest.approx(1 / 21), "no shuffle of the labels does as well"
    assert int(names["lens"].rank[0, -1, 0]) == 0 < int(names["lens"].rank[0, 0, 0])
    assert len(figures_of(shown)) == 2 and len(html_of(shown)) == 4
    (view,) = views_of(shown)
    assert "".join(view.tokens) == names["model"].decode(names["ids"])
    assert sum(view.values["difference"]) > 0, "the persona's prompt moves the states along its vector"


@pytest.mark.real
@pytest.mark.timeout(300)
def test_a_projection_is_far_above_the_floor_until_the_release_and_no_random_push_does_it(session_model):
    names, shown = run(EXAMPLES[[path.stem for path in EXAMPLES].index("steered_then_free")])
    release, role = names["run"], names["ROLE"]
    free = release.free()
    assert int(free.sum()) == names["HOW"]["n_free"] and release.cache == "fresh"
    steered = {arm: float(release.curves(arm, role)[:, ~free].nanmean()) for arm in release.arms}
    length = float(names["push"].norm())
    assert steered["steered"] - steered["floor"] > 0.5 * length
    assert abs(steered["random"] - steered["floor"]) < 0.2 * length
    assert float(names["free"]["ceiling"].mean() - names["free"]["floor"].mean()) > 2
    assert float(names["free"]["steered"].mean()) < steered["steered"] - 0.5 * length, (
        "it does not stay whole"
    )
    assert names["random"].norm(dim=1).allclose(names["push"].norm(), rtol=1e-4)
    carried = names["carried"]
    assert carried.cache == "carry" and carried.seeds[: len(names["SEEDS"])] == tuple(names["SEEDS"])
    both = [found.generated[found.rows("floor")] for found in (release, carried)]
    assert float((both[0] == both[1]).float().mean()) > 0.9, "an unsteered row leaves nothing to carry"
    assert all(found.reason or found.identified for found in names["decay"].values())
    assert names["strength"].found[0] != names["strength"].found[-1] and names["strength"].asked == 2
    assert len(figures_of(shown)) == 1 and len(html_of(shown)) == 4
    (view,) = views_of(shown)
    (projection,) = view.values.values()
    assert math.isnan(projection[release.n_steer]) and "released" in view.tokens[release.n_steer]


@pytest.mark.real
@pytest.mark.timeout(300)
def test_the_row_that_writes_a_marker_looks_at_the_system_prompt_since_it_was_trained(session_model):
    names, shown = run(EXAMPLES[[path.stem for path in EXAMPLES].index("attention_at_a_marker")])
    held, content = names["of_content"], names["content"][0]
    assert held.fractions.sum(-1).allclose(torch.ones(held.fractions.shape[:-1]), atol=1e-4)
    assert len(names["texts"]) >= 6 and names["rows"][0][1] == names["rows"][0][0] + 1
    assert set(content.names) - set(names["blocks"][0].names) == {"specials"}
    assert not set(content.positions("system").tolist()) & set(content.positions("specials").tolist())
    test, layer = names["tests"]["emit"], names["layer"]
    assert float(test.p_max_t[layer]) < 0.05 and float(test.low[layer]) > 0.02
    trained, base = (
        torch.tensor([x[0][layer] for x in names["shares"][who]]).mean() for who in ("trained", "base")
    )
    assert float(trained) > 0.05 + float(base)
    alone = held.fractions[0, :, :, held.regions.index("system")].mean(1)
    assert alone.allclose(torch.as_tensor(names["shares"]["trained"][0][0]), atol=1e-5), (
        "alone or with others"
    )
    assert test.estimate.max() > 1.5 * -test.estimate.min(), "trained to look, and at few layers to look away"
    assert len(figures_of(shown)) == 1 and len(html_of(shown)) == 3
    (view,) = views_of(shown)
    assert list(view.values) == ["trained", "base"] and math.isnan(view.values["base"][0])
    after = [value for value, here in zip(view.values["trained"], range(len(view.tokens)), strict=True)
             if here > names["rows"][0][0]]  # fmt: skip
    assert after and not any(after), "no row sees what comes behind it"


@pytest.mark.real
@pytest.mark.timeout(300)
def test_a_naive_p_finds_what_is_not_there_and_an_honest_one_does_not(session_model):
    names, shown = run(EXAMPLES[[path.stem for path in EXAMPLES].index("divergence_leakage_inference")])
    js = names["divergence"].matrix()
    assert js.allclose(js.T) and not js.diagonal().any() and 0 < float(js.max()) < math.log(2)
    leaked, sources = names["leaked"], names["sources"]
    assert all(leaked.rate(name, name).estimate > 0.9 for name in sources)
    held, planted, dyadic = names["held"], names["planted"], names["dyadic"]
    assert held.n_sources == 6 and held.n_pairs == 30 and held.pooled.n == 30
    assert planted.pooled.p < 1e-4 and planted.within_p > 0.2 and planted.block_p > 0.1
    assert dyadic.naive.p < 1e-3 and dyadic.p > 0.05 and dyadic.low < 0 < dyadic.estimate < dyadic.high
    called = names["called"]
    assert called["pooled (naive)"].low > 0.3 and called["dyadic (naive)"].low > 0.15
    assert all(called[name].low < 0.05 < called[name].high < 0.15 for name in ("within", "blocks"))
    assert called["dyadic (Mantel)"].low < 0.05
    rates = next(one for one in shown if type(one).__name__ == "MarkerRates")
    assert rates.rate("villain").estimate > rates.rate("assistant").estimate
    assert len(figures_of(shown)) == 2 and len(html_of(shown)) == 5


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_in_a_kernel_results_show_themselves_with_words_table_and_figure(tmp_path):
    """The notebook as jupytext reads it, run by a kernel of its own over sockets of the file system."""
    import jupytext
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = jupytext.read(EXAMPLES[[path.stem for path in EXAMPLES].index("attention_at_a_marker")])
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and "code" in kinds and "%%" not in notebook.cells[0].source
    kernel = AsyncKernelManager(transport="ipc", ip=str(tmp_path / "kernel"))
    NotebookClient(notebook, km=kernel, timeout=200).execute(cwd=str(tmp_path))
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert not [out for out in outputs if out.output_type == "error"]
    shown = [out.data for out in outputs if "data" in out]
    words = ["".join(data["text/html"]) for data in shown if "text/html" in data]
    assert any("<b>AttentionFractions</b>" in one and "<table" in one and "n = " in one for one in words)
    assert any('class="token-view"' in one for one in words)
    drawn = [
        data["application/vnd.plotly.v1+json"] for data in shown if "application/vnd.plotly.v1+json" in data
    ]
    assert len(drawn) == 2 and all(figure["data"] for figure in drawn)
    follows = [
        ("text/html" in one, "application/vnd.plotly.v1+json" in other) for one, other in pairwise(shown)
    ]
    assert (True, True) in follows, "the figure of a result follows its words"


def test_every_notebook_has_a_test_of_its_own():
    tests = Path(__file__).read_text()
    for path in EXAMPLES:
        assert f'index("{path.stem}")' in tests, f"{path.name} is run by no test"
