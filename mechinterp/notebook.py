"""How results show themselves in a notebook: what they are, n, seed, a small table, the figure."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from mechinterp.results import Result

ROWS, COLUMNS = 6, 10  # of the table


def html_of(result: Result) -> str:
    """The words and the first rows of the table, all text escaped."""
    name, said = type(result).__name__, (type(result).__doc__ or "").strip().partition("\n")[0]
    said = re.sub("`+([^`]+)`+", r"<code>\1</code>", html.escape(said))
    figure = _figure(result)
    parts = [f"<p><b>{html.escape(name)}</b> {said}</p>"]
    if figure is not None:
        parts.append(f"<p><small>{_subtitle(figure)}</small></p>")
    return f"<div>{''.join([*parts, _table(result)])}</div>"


def display(result: Result) -> None:
    """The words, then the figure by plotly's own renderer."""
    from IPython.display import HTML
    from IPython.display import display as show

    show(HTML(html_of(result)))
    figure = _figure(result)
    if figure is not None:
        show(figure)


def _figure(result: Result) -> go.Figure | None:
    """None where a result has no figure."""
    try:
        return result.figure()
    except NotImplementedError:
        return None


def _subtitle(figure: go.Figure) -> str:
    """What every figure of ours says below its title: model, n, seeds, band; plotly's markup is HTML's."""
    title: Any = figure.layout.title
    return (title.subtitle.text or "") if title is not None and title.subtitle is not None else ""


def _table(result: Result) -> str:
    try:
        frame = result.to_dataframe()
    except NotImplementedError:
        return ""
    shown = frame.iloc[:ROWS, :COLUMNS].to_html(index=False, border=0, float_format="{:.4g}".format)
    rest = [f"{len(frame) - ROWS} more rows"] * (len(frame) > ROWS)
    rest += [f"{frame.shape[1] - COLUMNS} more columns"] * (frame.shape[1] > COLUMNS)
    return shown + (f"<p><small>and {', '.join(rest)}</small></p>" if rest else "")
