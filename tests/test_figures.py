"""Figures: what is drawn is what was given, nothing is hidden, and no text of a model can act."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from mechinterp import export, figures
from tests.browser import chrome

SUBTITLE = figures.caption(
    "tiny-llama (1a2b3c4)", n=8, unit="run", seeds=range(42, 50), band="95 % over runs"
)
HOSTILE = (
    "</script><script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "<a href=\"javascript:document.title='pwned'\">click</a> <b>bold</b> $\\alpha$",
)


def layers(n: int = 6, groups: tuple[str, ...] = ("villain", "poet")) -> pd.DataFrame:
    rows = [(g, i, i + 10.0 * k) for k, g in enumerate(groups) for i in range(n)]
    df = pd.DataFrame(rows, columns=["role", "layer", "norm"])
    return df.assign(low=df.norm - 1, high=df.norm + 2)


def tokens(n: int = 40) -> pd.DataFrame:
    df = layers(n).rename(columns={"layer": "token", "norm": "projection", "role": "arm"})
    return df.assign(projection=(df.token >= 20) * 5.0, low=-1.0, high=6.0)


def doses() -> pd.DataFrame:
    strength = np.array([2.0, 0.0, 1.0, 4.0])
    return pd.DataFrame({"strength": strength, "effect": 3 * strength, "kl": strength**2 / 4})


def lines_of(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.name != "band"]


def notes_of(figure: go.Figure) -> str:
    return " ".join(figure.layout.meta["notes"])


def every_figure() -> dict[str, go.Figure]:
    square = pd.DataFrame(np.eye(3), index=list("abc"), columns=list("abc"))
    return {
        "layer": figures.per_layer(layers(), "norm", by="role", low="low", high="high", subtitle=SUBTITLE),
        "token": figures.per_token(
            tokens(), "projection", by="arm", boundaries=[(20, "free")], subtitle=SUBTITLE
        ),
        "heatmap": figures.heatmap(
            square,
            title="t",
            x_title="to",
            y_title="from",
            colour_title="cosine",
            center=0.0,
            subtitle=SUBTITLE,
        ),
        "scatter": figures.scatter(layers(), "layer", "norm", by="role", trend=True, subtitle=SUBTITLE),
        "dose": figures.dose_response(doses(), frontier=1.0, subtitle=SUBTITLE),
    }


def test_importing_the_figures_imports_neither_plotly_nor_pandas():
    code = "import sys, mechinterp.figures, mechinterp.export; print({'plotly', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_the_caption_says_model_n_seeds_and_band():
    assert SUBTITLE == "tiny-llama (1a2b3c4) · n = 8 runs · seeds 42–49 · band: 95 % over runs"
    one = figures.caption("m", n=1, unit="run", seeds=[7], band="none", more=["cache carry"])
    assert one == "m · n = 1 run · seed 7 · band: none · cache carry"
    assert "seeds 1, 5, 9" in figures.caption("m", n=3, unit="run", seeds=[9, 1, 5], band="none")


@pytest.mark.parametrize("name", ["layer", "token", "heatmap", "scatter", "dose"])
def test_every_figure_shows_its_subtitle_titles_and_only_finite_traces(name: str):
    figure = every_figure()[name]
    shown = figure.layout.title.subtitle.text.split("<br><i>")[0].replace("<br>", " · ")
    assert shown == SUBTITLE and figure.layout.meta == {
        "subtitle": SUBTITLE,
        "notes": figure.layout.meta["notes"],
    }
    assert figure.layout.title.text and figure.layout.yaxis.title.text
    assert figure.layout.template.layout.colorway == ("#0072B2", *figure.layout.template.layout.colorway[1:])
    for trace in figure.data:
        values = trace.z if trace.type == "heatmap" else trace.y
        assert any(value is not None for value in np.ravel(np.array(values, dtype=object)))


@pytest.mark.parametrize("subtitle", ["", "  "])
def test_a_figure_without_its_claim_is_refused(subtitle: str):
    with pytest.raises(ValueError, match="says model, n, seeds and band"):
        figures.per_layer(layers(), "norm", subtitle=subtitle)
    with pytest.raises(ValueError, match="says model, n, seeds and band"):
        figures.dose_response(doses(), frontier=1.0, subtitle=subtitle)


def test_lines_are_the_table_and_layers_are_whole_numbers():
    df = layers()
    figure = figures.per_layer(df.sample(frac=1, random_state=0), "norm", by="role", subtitle=SUBTITLE)
    assert {line.name for line in figure.data} == {"villain", "poet"}
    for line in figure.data:
        part = df[df.role == line.name]
        assert list(line.x) == list(part.layer) and list(line.y) == list(part.norm)
    axis = figure.layout.xaxis
    assert (axis.title.text, axis.dtick, axis.tick0, axis.range) == ("layer", 1, 0, (-0.5, 5.5))
    assert figures.per_layer(layers(200), "norm", by="role", subtitle=SUBTITLE).layout.xaxis.dtick == 20


def test_a_band_is_its_bounds_and_breaks_where_they_are_unknown():
    df = layers(7, ("villain",))
    df.loc[3, "low"] = math.nan
    band, line = figures.per_layer(df, "norm", low="low", high="high", subtitle=SUBTITLE).data
    assert list(band.x) == [0, 1, 2, 2, 1, 0, None, 4, 5, 6, 6, 5, 4, None]
    assert list(band.y)[:6] == [2, 3, 4, 1, 0, -1]
    assert len(line.y) == 7 and line.customdata[1] == "1 [0, 3]"


def test_fault_105_one_layer_is_drawn_as_points_side_by_side_with_a_note():
    figure = figures.per_layer(layers(1), "norm", by="role", low="low", high="high", subtitle=SUBTITLE)
    assert [line.mode for line in figure.data] == ["markers"] * 2
    assert figure.data[0].x != figure.data[1].x and list(figure.data[0].error_y.array) == [2]
    assert "one layer only" in notes_of(figure)


def test_fault_105_nothing_finite_says_so_in_place_of_lines():
    nothing = layers().assign(norm=math.nan)
    square = pd.DataFrame(np.full((2, 2), np.nan))
    for figure in (
        figures.per_layer(nothing, "norm", by="role", subtitle=SUBTITLE),
        figures.per_layer(nothing.iloc[:0], "norm", by="role", subtitle=SUBTITLE),
        figures.scatter(nothing, "layer", "norm", subtitle=SUBTITLE, trend=True),
        figures.heatmap(square, title="t", x_title="", y_title="", colour_title="", subtitle=SUBTITLE),
    ):
        assert not [trace for trace in figure.data if trace.type == "scatter"]
        assert "no finite values" in [each.text for each in figure.layout.annotations]
    one = figures.per_layer(layers().assign(norm=lambda d: d.norm.where(d.role == "poet")), "norm", by="role",
                            subtitle=SUBTITLE)  # fmt: skip
    assert [line.name for line in one.data] == ["poet"] and "no finite values for villain" in notes_of(one)


def test_fault_105_a_hundred_personas_are_thin_lines_with_their_median():
    names = tuple(f"persona {i}" for i in range(100))
    figure = figures.per_layer(layers(4, names), "norm", by="role", low="low", high="high", subtitle=SUBTITLE)
    assert len(figure.data) == 101 and not any(line.showlegend for line in figure.data)
    assert list(figure.data[-1].y) == [layers(4, names).groupby("layer").norm.median()[i] for i in range(4)]
    assert "100 lines" in notes_of(figure)


def test_fault_105_many_lines_still_differ_in_colour_or_dash():
    names = tuple(f"persona {i}" for i in range(14))
    drawn = figures.per_layer(layers(4, names), "norm", by="role", subtitle=SUBTITLE).data
    assert len({(line.line.color, line.line.dash) for line in drawn}) == 14


def test_boundaries_stand_before_the_phase_they_name_and_bands_lie_under_the_lines():
    floor = figures.Band("floor", 0.0, -0.5, 0.5)
    figure = figures.per_token(
        tokens(), "projection", by="arm", boundaries=[(20, "free")], bands=[floor], subtitle=SUBTITLE
    )
    assert figure.layout.shapes[0].x0 == 19.5
    assert {"free", "floor"} <= {each.text for each in figure.layout.annotations}
    assert list(figure.data[0].y) == [-0.5, -0.5, 0.5, 0.5] and figure.data[1].name == "floor"
    assert [line.name for line in figure.data[2:]] == ["villain", "poet"]


def test_smoothing_never_crosses_a_boundary_and_says_that_it_happened():
    df = tokens()
    smooth = figures.per_token(
        df, "projection", by="arm", boundaries=[(20, "free")], smooth=9, subtitle=SUBTITLE
    )
    assert list(smooth.data[0].y) == [0.0] * 20 + [5.0] * 20
    assert "running means over 9 tokens" in notes_of(smooth)
    across = figures.per_token(df, "projection", by="arm", smooth=9, subtitle=SUBTITLE)
    assert 0 < across.data[0].y[18] < 5
    noisy = df.assign(projection=np.random.default_rng(0).normal(size=len(df))).sample(frac=1, random_state=1)
    expected = noisy[noisy.arm == "poet"].sort_values("token").projection.rolling(9, center=True).mean()
    drawn = figures.per_token(noisy, "projection", by="arm", smooth=9, subtitle=SUBTITLE).data
    line = next(line for line in drawn if line.name == "poet")
    assert list(line.y)[4:-4] == pytest.approx(expected.dropna().tolist())


def heatmap(matrix: pd.DataFrame, center: float | None = None) -> go.Figure:
    return figures.heatmap(
        matrix, title="t", x_title="to", y_title="from", colour_title="c", center=center, subtitle=SUBTITLE
    )


def test_a_diverging_scale_is_symmetric_about_its_centre():
    trace = heatmap(pd.DataFrame([[0.1, 3.0], [-1.0, 0.5]]), center=1.0).data[0]
    assert (trace.zmin, trace.zmax) == (-1.0, 3.0)
    assert heatmap(pd.DataFrame([[0.1, 3.0]])).data[0].zmin is None


def test_small_matrices_show_their_numbers_and_undefined_cells_are_counted():
    figure = heatmap(pd.DataFrame([[0.123, -0.001], [math.nan, 1.0]]), center=0.0)
    assert [list(row) for row in figure.data[0].text] == [["0.12", "0.00"], ["", "1.00"]]
    assert figure.data[0].z[1][0] is None and "1 of 4 cells are undefined" in notes_of(figure)
    assert heatmap(pd.DataFrame(np.zeros((20, 20)))).data[0].text is None


def test_rows_keep_their_cells_when_their_names_are_cut_to_the_same_text():
    names = ["x" * 50 + "1", "x" * 50 + "2"]
    figure = heatmap(pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], index=names, columns=names))
    assert [list(row) for row in figure.data[0].z] == [[1, 2], [3, 4]]
    assert (
        figure.layout.yaxis.ticktext[0] == figure.layout.yaxis.ticktext[1]
        and len(figure.layout.yaxis.tickvals) == 2
    )


def test_the_trend_is_least_squares_and_absent_where_it_cannot_be():
    df = pd.DataFrame({"x": [0.0, 1.0, 2.0, 3.0], "y": [1.0, 3.0, 4.0, 8.0]})
    trend = figures.scatter(df, "x", "y", trend=True, subtitle=SUBTITLE).data[-1]
    slope, start = np.polyfit(df.x, df.y, 1)
    assert list(trend.x) == [0, 3] and list(trend.y) == pytest.approx([start, start + 3 * slope])
    for short in (df[:2], df.assign(x=1.0)):
        figure = figures.scatter(short, "x", "y", trend=True, subtitle=SUBTITLE)
        assert len(figure.data) == 1 and "no trend line" in notes_of(figure)


def test_open_markers_are_exactly_the_doses_beyond_the_frontier():
    figure = figures.dose_response(doses(), frontier=1.0, subtitle=SUBTITLE)
    effect, kl, frontier = figure.data
    assert list(kl.x) == [0, 1, 2, 4] and list(kl.y) == [0, 0.25, 1, 4]
    assert list(kl.marker.symbol) == list(effect.marker.symbol) == ["circle"] * 3 + ["circle-open"]
    assert list(frontier.y) == [1, 1] and "(1 of 4)" in notes_of(figure)
    assert figure.layout.yaxis2.title.text == "KL (nats)" and figure.layout.xaxis2.title.text == "strength"


def hostile_figures() -> dict[str, go.Figure]:
    df = layers(4, HOSTILE).rename(columns={"role": HOSTILE[1]})
    table = pd.DataFrame(np.eye(3), index=list(HOSTILE), columns=list(HOSTILE))
    token = df.rename(columns={"layer": "token"})
    bands = [figures.Band(HOSTILE[0], 0.0, -1.0, 1.0)]
    words = {"subtitle": " ".join(HOSTILE), "title": HOSTILE[0], "y_title": HOSTILE[1]}
    hostile = [(2, text) for text in HOSTILE]
    dose = doses().assign(arm=HOSTILE[2])
    return {
        "layer": figures.per_layer(df, "norm", by=HOSTILE[1], **words),
        "token": figures.per_token(token, "norm", by=HOSTILE[1], boundaries=hostile, bands=bands, **words),
        "heatmap": figures.heatmap(table, x_title=HOSTILE[2], colour_title=HOSTILE[1], **words),
        "scatter": figures.scatter(df, "layer", "norm", by=HOSTILE[1], name=HOSTILE[1], **words),
        "dose": figures.dose_response(
            dose, frontier=1.0, by="arm", subtitle=HOSTILE[0], effect_title=HOSTILE[1]
        ),
    }


def test_fault_100_labels_carry_no_markup_formula_or_control_character():
    for text in HOSTILE:
        assert not re.search(r"[<>$]", figures.label(text, 200))
    assert figures.label("a\x00b\x1b[31m\nc & d") == "a b [31m c &amp; d"
    assert figures.label("é漢字 🙂") == "é漢字 🙂" and len(figures.label("x" * 99)) == 44


@pytest.mark.parametrize("name", ["layer", "token", "heatmap", "scatter", "dose"])
def test_fault_100_every_word_of_a_figure_is_escaped(name: str):
    page = export.page(hostile_figures()[name])
    body = page.split("Plotly.newPlot", 1)[1]
    assert "</script><script>document" not in page
    drawn = json.loads(export.to_json(hostile_figures()[name]))
    drawn["layout"].pop("meta")  # the raw subtitle, for machines: plotly does not draw it

    def texts(node: object) -> list[str]:
        if isinstance(node, dict):
            return [text for child in node.values() for text in texts(child)]
        if isinstance(node, list):
            return [text for child in node for text in texts(child)]
        return [node] if isinstance(node, str) else []

    assert body and not [text for text in texts(drawn) if re.search(r"<(?!br>|extra>|/extra>|i>|/i>)", text)]


def test_json_is_the_same_bytes_each_time_and_holds_no_nan(tmp_path: Path):
    df = layers()
    df.loc[2, ["norm", "low"]] = math.nan
    first, second = (
        export.to_json(figures.per_layer(df, "norm", by="role", low="low", high="high", subtitle=SUBTITLE))
        for _ in range(2)
    )
    assert first == second and "NaN" not in first and json.loads(first)["data"]
    assert go.Figure(json.loads(first)).data[1].y[2] is None


def test_pages_share_one_script_and_name_no_other_host(tmp_path: Path):
    saved = export.save_figures(every_figure(), tmp_path / "deep" / "figures")
    assert saved.notice is None and {path.name for path in saved.files} == {
        "plotly.min.js", *(f"{name}.{kind}" for name in every_figure() for kind in ("html", "json")),
    }  # fmt: skip
    for path in saved.files:
        assert path.is_file()
        if path.suffix == ".html":
            page = path.read_text()
            assert "http" not in page.replace("http-equiv", "") and 'src="plotly.min.js"' in page
            assert "sendChartToCloud" in page.split("modeBarButtonsToRemove", 1)[1]
    again = export.save_figures(every_figure(), tmp_path / "again")
    assert [path.read_bytes() for path in again.files] == [path.read_bytes() for path in saved.files]


@pytest.mark.parametrize("name", ["../up", "a/b", "", "CON", "naïve", HOSTILE[0]])
def test_names_that_are_no_file_names_are_refused_before_anything_is_written(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match="cannot name a figure's file"):
        export.save_figures({"good": go.Figure(), name: go.Figure()}, tmp_path)
    with pytest.raises((ValueError, TypeError), match="html.*json.*png.*pdf"):
        export.save_figures({"good": go.Figure()}, tmp_path, ["svg"])  # type: ignore[list-item]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("browser", "notice"),
    [("/nowhere/chrome", "no Chrome or Chromium was found"), ("/bin/false", "did not run")],
)
def test_fault_104_without_a_working_chrome_the_rest_is_written_with_a_notice(
    browser: str, notice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BROWSER_PATH", browser)
    one = {"layer": every_figure()["layer"]}
    with pytest.warns(UserWarning, match=notice):
        saved = export.save_figures(one, tmp_path, ["html", "json", "png", "pdf"])
    assert saved.notice and {path.name for path in saved.files} == {
        "layer.html",
        "layer.json",
        "plotly.min.js",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"layer.html", "layer.json", "plotly.min.js"}


def test_fault_104_without_kaleido_the_notice_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "kaleido.errors", None)
    with pytest.warns(UserWarning, match="kaleido is not installed"):
        saved = export.save_figures({"layer": every_figure()["layer"]}, tmp_path, ["json", "png"])
    assert [path.name for path in saved.files] == ["layer.json"]


QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--virtual-time-budget=4000",
        "--dump-dom",
    ),
]
WATCH = """<script>
document.addEventListener('securitypolicyviolation', e => document.body.dataset.refused = e.blockedURI);
setTimeout(() => {
  document.body.dataset.title = document.title;
  document.body.dataset.loaded = performance.getEntriesByType('resource').map(e => e.name).join(' ');
}, 2000);
</script></body>"""


class Tags(HTMLParser):
    """The elements of a page with their attributes, as a browser's dump gives them."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))

    def of(self, tag: str) -> list[list[tuple[str, str | None]]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.mark.browser
@pytest.mark.xdist_group("browser")
@pytest.mark.parametrize("name", ["layer", "token", "heatmap", "scatter", "dose"])
def test_fault_100_in_a_browser_the_page_draws_asks_nobody_and_runs_nothing(name: str, tmp_path: Path):
    browser = chrome()
    export.save_figures(hostile_figures(), tmp_path, ["html"])
    path = tmp_path / f"{name}.html"
    path.write_text(path.read_text().replace("</body>", WATCH))
    dom = subprocess.run(
        [browser, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    tags = Tags(dom)
    assert "main-svg" in dom and "&lt;" in dom
    body = dict(tags.of("body")[0])
    assert body["data-title"] == "Figure" and "data-refused" not in body
    assert all(url.startswith("file:") for url in (body["data-loaded"] or "").split())
    # plotly keeps an empty link of its own; what it holds must not come from a label
    assert not tags.of("img") and not [link for link in tags.of("a") if dict(link).get("href")]
    harmless = Tags(export.page(every_figure()[name]))
    assert len(tags.of("script")) == len(harmless.of("script")) + 1  # the watcher's own


@pytest.mark.browser
@pytest.mark.xdist_group("browser")
def test_pictures_of_several_figures_are_drawn_at_their_own_size(tmp_path: Path):
    chrome()
    two = {name: every_figure()[name] for name in ("layer", "dose")}
    saved = export.save_figures(two, tmp_path, ["png", "pdf"])
    assert saved.notice is None and len(saved.files) == 4 == len(list(tmp_path.iterdir()))
    for name, height in (("layer", 480), ("dose", 620)):
        png = (tmp_path / f"{name}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n" and len(png) > 20_000
        size = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
        assert size == (2 * export.WIDTH, 2 * height)
        assert (tmp_path / f"{name}.pdf").read_bytes()[:5] == b"%PDF-"
