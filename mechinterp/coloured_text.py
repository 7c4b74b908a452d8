"""A text by token, coloured by any quantity of its tokens: attention rows, projections, marker probabilities.

One piece of HTML without a script and without anything from outside: every token can be reached with the
keyboard, and says its text and value where the pointer or the focus is.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechinterp.files import write_bytes

WARM, COLD = (213, 94, 0), (0, 114, 178)  # of the palette that the colour-blind can tell apart
JOINERS = "\u200c\u200d"  # within words and emoji
STYLE = """<style>
.token-view { font: 15px/2.1 system-ui, sans-serif; max-width: 52rem; color: #1a1a1a; background: #fff;
  padding: .6rem .8rem; }
.token-view h4 { margin: .6rem 0 .1rem; font-size: 14px; }
.token-view p { margin: .2rem 0 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.token-view small { color: #555; }
.token-view span { position: relative; border-radius: 3px; padding: 2px 0; }
.token-view span:focus { outline: 2px solid #1a1a1a; outline-offset: 1px; }
.token-view span:hover::after, .token-view span:focus::after { content: attr(data-said); position: absolute;
  left: 0; top: 1.6em; z-index: 1; padding: 1px 6px; border-radius: 3px; background: #1a1a1a; color: #fff;
  font-size: 12px; line-height: 1.5; white-space: pre; }
</style>"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Tokens</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
</head><body>{body}</body></html>
"""


@dataclass(frozen=True)
class TokenView:
    """Tokens with one value each under every name in `values`; shows itself in a notebook."""

    tokens: tuple[str, ...]
    values: dict[str, tuple[float, ...]]
    note: str = ""

    def _repr_html_(self) -> str:
        parts = [_lines(name, self.tokens, held) for name, held in self.values.items()]
        note = f"<small>{html.escape(self.note)}</small>" if self.note else ""
        return f'{STYLE}<div class="token-view" dir="auto">{"".join(parts)}{note}</div>'

    def save(self, path: Path | str) -> Path:
        """A page of its own that opens offline."""
        page = PAGE.format(body=self._repr_html_())
        write_bytes(Path(path), page.encode("utf-8", "backslashreplace"))
        return Path(path)


def token_view(
    tokens: Sequence[str], values: Mapping[str, Any] | Sequence[float] | Any, *, note: str = ""
) -> TokenView:
    """`tokens` as text, with one number a token, or several under names (tensors and arrays too).

    A value that is not finite stays uncoloured and says so. Raises ValueError for another number of values
    than of tokens.
    """
    named = values if isinstance(values, Mapping) else {"value": values}
    held = {str(name): tuple(float(v) for v in given) for name, given in named.items()}
    for name, given in held.items():
        if len(given) != len(tokens):
            raise ValueError(f"{name!r} has {len(given)} values for {len(tokens)} tokens; give one a token")
    return TokenView(tuple(tokens), held, note)


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; bytes of a character that several tokens share show with the first of them.

    Joined, the pieces are the decoded text.
    """
    ids = [int(i) for i in ids]
    found, said = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = text if end == len(ids) else text.rstrip("\N{REPLACEMENT CHARACTER}")
        found.append(whole[len(said) :] if len(whole) > len(said) else "")
        said = whole if len(whole) > len(said) else said
    return found


def _lines(name: str, tokens: Sequence[str], values: Sequence[float]) -> str:
    """One quantity: its scale in words, then the text."""
    finite = [value for value in values if math.isfinite(value)]
    largest = max(map(abs, finite), default=0.0) or 1.0
    scale = f"{min(finite):.3g} to {max(finite):.3g}" if finite else "no finite value"
    spans = [_span(token, value, largest) for token, value in zip(tokens, values, strict=True)]
    return f"<h4>{html.escape(name)} <small>{scale}, {len(tokens)} tokens</small></h4><p>{''.join(spans)}</p>"


def _span(token: str, value: float, largest: float) -> str:
    shown = html.escape(_visible(token)) or "·"  # the rest of a character that began before
    told = f"{value:.4g}" if math.isfinite(value) else "no value"
    said = html.escape(f"{_visible(token).strip() or 'space'}  {told}", quote=True)
    red, green, blue = WARM if value >= 0 else COLD
    strength = abs(value) / largest if math.isfinite(value) else 0.0
    style = f"background:rgba({red},{green},{blue},{0.75 * strength:.3f})"
    return f'<span tabindex="0" data-said="{said}" aria-label="{said}" style="{style}">{shown}</span>'


def _visible(token: str) -> str:
    """Line ends are drawn and kept; other characters that would not show become their pictures."""
    return "".join(_drawn(character) for character in token)


def _drawn(character: str) -> str:
    if character == "\n":
        return "\u21b5\n"
    if character.isprintable() or character in JOINERS:
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 32 else "\N{REPLACEMENT CHARACTER}"
