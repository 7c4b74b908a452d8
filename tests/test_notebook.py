"""Results show themselves in a notebook, and texts are shown by token: escaped, whole, without a script."""

import re
import subprocess
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechinterp as mi
from mechinterp import theme
from mechinterp.coloured_text import TokenView
from mechinterp.results import Result
from tests.browser import chrome

HOSTILE = "</span><script>document.title='run'</script>"


@dataclass(frozen=True, eq=False)
class Shown(Result):
    """What a study found <b>of</b> it. A second sentence."""

    n: int = 9

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame({f"c{i}": [HOSTILE, *range(self.n - 1)] for i in range(12)})

    def figure(self) -> go.Figure:
        figure, said = go.Figure(), theme.caption("tiny", n=self.n, unit="text", seeds=[7], band="none")
        theme.finish(figure, "Title", said, [], x_title="x", y_title="y")
        return figure


@dataclass(frozen=True, eq=False)
class Bare(Result):
    """Neither a table nor a figure."""

    x: int = 1


def words(html: str) -> str:
    return re.sub(r"<[^>]+>", "", html)


def test_a_result_says_what_it_is_of_which_n_and_seed_with_a_small_table():
    said = Shown()._repr_html_()
    assert "<b>Shown</b>" in said and "tiny · n = 9 texts · seed 7 · band: none" in said
    assert "&lt;b&gt;of&lt;/b&gt;" in said and "<script" not in said
    assert "and 3 more rows, 2 more columns" in said and said.count("<tr") == 7
    assert "more" not in Shown(3)._repr_html_().replace("2 more columns", "")
    assert words(Bare()._repr_html_()) == "Bare Neither a table nor a figure."


def test_in_a_notebook_the_figure_follows_the_words(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    Shown()._ipython_display_()
    Bare()._ipython_display_()
    assert [type(one).__name__ for one in shown] == ["HTML", "Figure", "HTML"]


@pytest.mark.parametrize("text", ["Héllo wörld", "👩‍👩‍👧 family", "日本語です", "tab\tand\nline", HOSTILE])
def test_pieces_join_to_the_text_whatever_it_holds(real, text):
    ids = real.tokenizer(text)["input_ids"]
    found = mi.pieces(real.tokenizer, ids)
    assert len(found) == len(ids) and "".join(found) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=8))
def test_any_text_is_escaped_and_every_token_has_its_value(tokens):
    view = mi.token_view(tokens, {"a<b": [0.5] * len(tokens), "c": [float("nan")] * len(tokens)})
    html = view._repr_html_()
    assert html.count('tabindex="0"') == 2 * len(tokens) == html.count("data-said=")
    inside = html.partition('<div class="token-view"')[2]
    assert set(re.findall(r"</?([a-z0-9]+)", inside)) <= {"h4", "small", "p", "span", "div"}
    assert "no value" in inside and "a&lt;b" in inside


def test_colour_grows_with_the_size_and_turns_with_the_sign():
    html = mi.token_view(["a", "b", "c"], torch.tensor([-2.0, 1.0, 0.0]))._repr_html_()
    assert re.findall(r"rgba\(([\d.,]+)\)", html) == ["0,114,178,0.750", "213,94,0,0.375", "213,94,0,0.000"]
    assert "value <small>-2 to 1, 3 tokens" in html
    with pytest.raises(ValueError, match="'value' has 2 values for 3 tokens"):
        mi.token_view(["a", "b", "c"], [1.0, 2.0])


def test_a_row_of_attention_is_shown_over_its_text(real):
    prompt = real.chat("Tell me a story.", system="You are a villain.")
    ids = prompt.tokens[0]
    seen = real.forward(prompt.tokens, capture=[mi.Site("pattern", 3)], positions=[-1])
    row = seen[mi.Site("pattern", 3)][0, :, 0].mean(0)
    view = mi.token_view(mi.pieces(real.tokenizer, ids.tolist()), {"layer 3, mean of heads": row})
    assert isinstance(view, TokenView) and abs(sum(view.values["layer 3, mean of heads"]) - 1) < 1e-4


@pytest.mark.browser
@pytest.mark.xdist_group("browser")
def test_fault_100_in_a_browser_a_hostile_token_runs_nothing(tmp_path):
    tokens = ["plain", HOSTILE, "\x1b[31m", "\u202eback"]
    path = mi.token_view(tokens, [0.1, 0.2, 0.3, 0.4], note=HOSTILE).save(tmp_path / "view.html")
    dom = subprocess.run(
        [chrome(), "--headless", "--no-sandbox", "--disable-background-networking",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    assert (
        "<title>Tokens</title>" in dom and "<script" not in dom and "\x1b" not in dom and "\u202e" not in dom
    )
    assert dom.count('tabindex="0"') == 4 and "document.title" in words(dom)
