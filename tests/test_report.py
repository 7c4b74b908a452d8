"""The report's page: what it shows and leaves out, and that no text in it is ever run."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from mechinterp import figures
from mechinterp.report import Headline, Page, Sample, Table, TokenText, render, write_book, write_report
from mechinterp.wording import clean, p_value, shown, three_digits
from tests.browser import chrome

HOSTILE = "</script><script>document.title='x'</script><img src=x onerror=\"document.title='x'\">"
LINK = '<a href="javascript:document.title=1">'
EVIL = (
    f"{HOSTILE} {LINK} ' \" & {{{{ 7*7 }}}} \x1b[31mred\x1b[0m \x1b]8;;http://example.com\x07\u202ebell\x07"
)
SECTIONS = ["asked", "answer", "tables", "figures", "texts", "samples", "caveats", "limits", "confidence",
            "setup", "compute", "digests"]  # fmt: skip


def curve(subtitle: str = "tiny · n = 3 runs · seeds 0–2 · band: SEM", title: str = "Norms", name: str = "a"):
    table = pd.DataFrame(
        {"layer": [0, 1, 2] * 2, "norm": [1.0, 2, 4, 1, 3, 9], "role": [name] * 3 + ["b"] * 3}
    )
    return figures.per_layer(table, "norm", by="role", subtitle=subtitle, title=title)


def matrix(name: str = "a"):
    cells = pd.DataFrame([[1.0, -0.5], [math.nan, 0.2]], index=[name, "b"], columns=[name, "b"])
    return figures.heatmap(cells, subtitle="tiny · n = 3 runs · no seed · band: none", title="Drift",
                           x_title="read", y_title="steered", colour_title="cosine", center=0)  # fmt: skip


def headline(**changes: Any) -> Headline:
    row = Headline("half-life", 7.123, 4.9, 9.61, 8, "run", "95 % bootstrap", "sign-flip", 0.0123)
    return dataclasses.replace(row, **changes)


def page(**changes: Any) -> Page:
    table = Table("Rates", ("persona", "found"), (("villain", 9), ("librarian", math.nan)), "n = 10 answers")
    tokens = (("You are", "system", ""), (" fine", "answer", "emit"), ("[Z", "answer", "token"))
    whole = Page(
        title="Persistence",
        asked="How long?\n\nUnder which arms?",
        answer="Seven tokens.",
        setup={"model": "tiny", "preset": "demo", "n": 8, "layer": 3, "seeds": (0, 1), "adapter": None},
        headlines=(headline(), headline(quantity="nothing", estimate=math.nan, note="it never fell")),
        confidence=("low", "Eight runs of one model."),
        compute={"cells": 4, "seconds": 12.5},
        digests={"manifest": "ab" * 32},
        figures={"norms": (curve(), "Norms grow."), "drift": (matrix(), "")},
        samples=(
            Sample("one", {"role": "pirate"}, (("prompt", "Who?"), ("steered", "Arr\n\nmatey")), "highest"),
            Sample("two", {}, (("steered", ""), ("free", "I am")), "typical"),
        ),
        tables=(table,),
        texts=(TokenText("the marker", tokens, "the first"),),
        caveats=("n is small.",),
        cannot_show=("Half-lives above 40.",),
    )
    return dataclasses.replace(whole, **changes)


def hostile_page() -> Page:
    return page(
        title=EVIL,
        asked=EVIL,
        answer=EVIL,
        setup={"model": EVIL, EVIL: [EVIL, {EVIL: EVIL}]},
        headlines=(headline(quantity=EVIL, unit=EVIL, interval=EVIL, test=EVIL, note=EVIL),),
        confidence=("low", EVIL),
        compute={EVIL: EVIL},
        digests={EVIL: EVIL},
        figures={"norms": (curve(EVIL, EVIL, EVIL), EVIL), "drift": (matrix(EVIL), EVIL)},
        samples=(Sample(EVIL, {EVIL: EVIL}, ((EVIL, EVIL), ("free", EVIL)), EVIL),),
        tables=(Table(EVIL, (EVIL, "n"), ((EVIL, 1),), EVIL),),
        texts=(TokenText(EVIL, ((EVIL, EVIL, EVIL), (EVIL, "free", "")), EVIL),),
        caveats=(EVIL,),
        cannot_show=(EVIL,),
    )


class Tree(HTMLParser):
    """The elements of a page with their attributes, and the text of each section."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.elements[-1][0] if self.elements else "", data))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self) -> str:
        return " ".join(" ".join(data for tag, data in self.texts if tag not in ("script", "style")).split())


def sections(text: str) -> list[str | None]:
    return [section["id"] for section in Tree(text).of("section")]


def test_sections_come_in_the_order_of_reading():
    assert sections(render(page())) == SECTIONS


@pytest.mark.parametrize(
    ("field", "empty", "section"),
    [("asked", "", "asked"), ("headlines", (), "answer"), ("figures", {}, "figures"),
     ("samples", (), "samples"), ("caveats", (), "caveats"), ("cannot_show", (), "limits"),
     ("setup", {}, "setup"), ("compute", {}, "compute"), ("digests", {}, "digests")],
)  # fmt: skip
def test_a_section_without_content_is_left_out_with_its_link(field: str, empty: Any, section: str):
    tree = Tree(render(page(**{field: empty})))
    left = [name for name in SECTIONS if name != section]
    assert [found["id"] for found in tree.of("section")] == left
    assert [link["href"] for link in tree.of("a") if str(link["href"]).startswith("#")] == [
        f"#{name}" for name in left
    ]


def test_what_a_page_holds_is_on_it():
    text = Tree(render(page())).text()
    for expected in (
        "Persistence", "Seven tokens.", "How long?", "Under which arms?", "7.12", "[4.90, 9.61]", "8 runs",
        "p = 0.012", "sign-flip", "95 % bootstrap", "not defined: it never fell", "Figure 1. Norms",
        "Norms grow.", "tiny · n = 3 runs · seeds 0–2 · band: SEM", "1 of 4 cells are undefined", "pirate",
        "highest", "Arr matey", "(empty)", "n is small.", "Half-lives above 40.", "low",
        "Eight runs of one model.", "0, 1", "none", "12.5", "ab" * 32,
    ):  # fmt: skip
        assert expected in text, expected


def test_tokens_that_were_read_are_framed_and_named():
    text = render(page())
    assert re.search(r'<span class="kind-\d">You are</span>', text)
    assert 'read" title="emit"> fine<sup>emit</sup></span>' in text


def test_a_table_has_a_value_a_column():
    with pytest.raises(ValueError, match="needs 2 values"):
        Table("Rates", ("persona", "found"), (("villain",),))


def test_a_book_holds_every_report_with_anchors_and_figures_of_its_own(tmp_path: Path):
    second = page(title="Attention", figures={"norms": (curve(), "Again.")})
    for name, one in (("a", page()), ("b", second)):
        write_report(one, tmp_path / name)
    text = write_book("Both", {"a": page(), "b": second}, tmp_path).read_text()
    names = re.findall(r' id="([^"]+)"', text)
    assert len(names) == len(set(names)) and "a-figures" in names and "b-figures" in names
    assert "<title>Both</title>" in text and text.count("<h1>") == 2
    links = re.findall(r'(?:href|src)="([^"#]+)"', text)
    assert links and all((tmp_path / link).is_file() for link in links)
    assert all(target in names for target in re.findall(r'href="#([^"]+)"', text))
    assert [int(n) for n in re.findall(r"Figure (\d+)\.", text)] == [1, 2, 3]


def test_the_first_sample_is_open_and_the_rest_are_folded():
    assert ["open" in details for details in Tree(render(page(texts=()))).of("details")] == [True, False]


def test_one_kind_of_text_has_one_colour_on_the_whole_page():
    text = render(page())
    colours = dict.fromkeys(re.findall(r'part kind-(\d)"><span class="kind">(\w+)', text))
    assert list(colours) == [("1", "prompt"), ("2", "steered"), ("3", "free")]


def test_figures_are_the_ones_that_were_given_without_their_title_and_untouched():
    held = page()
    before = {name: str(figure.to_json()) for name, (figure, _) in held.figures.items()}
    found = re.findall(r'<script type="application/json" id="figure-\d-json">(.*?)</script>', render(held))
    assert {name: str(figure.to_json()) for name, (figure, _) in held.figures.items()} == before
    for drawn, original in zip(map(json.loads, found), map(json.loads, before.values()), strict=True):
        assert drawn["data"] == original["data"]
        assert "title" not in drawn["layout"] and "width" not in drawn["layout"]
        assert drawn["layout"]["xaxis"] == original["layout"]["xaxis"]
        kept = drawn["layout"]["height"] - drawn["layout"]["margin"]["t"]
        height = original["layout"].get("height") or original["layout"]["template"]["layout"]["height"]
        assert kept == height - original["layout"]["margin"]["t"]


def test_a_figure_without_a_caption_is_refused_and_nothing_is_written(tmp_path: Path):
    with pytest.raises(ValueError, match="figure 'bare' has no caption; say model, n, seeds and band"):
        write_report(page(figures={"bare": (go.Figure(), " ")}), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_figure_of_another_hand_is_drawn_with_its_caption():
    drawn = go.Figure(go.Scatter(y=[1, 2]), {"title": {"text": "Mine"}, "width": 300, "height": 200})
    text = render(page(figures={"mine": (drawn, "tiny, n = 2, no seed, no band")}))
    assert "Figure 1. Mine" in text and "n = 2, no seed, no band" in text


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_fault_106_what_is_not_defined_says_why_and_is_never_blank(value: float | None):
    rows = (
        headline(estimate=value, low=value, high=value, p=value, note="constant input"),
        headline(low=value, high=value, p=value, n=1),
        headline(estimate=value, low=None, high=None, p=None, interval="", test=""),
        headline(p=value, test=""),
    )
    text = render(page(headlines=rows))
    cells = re.findall(r'<td role="cell"[^>]*>(.*?)</td>', text, re.DOTALL)
    assert len(cells) == 16 and all(Tree(cell).text() for cell in cells)
    said = [Tree(f"<p>{cell}").text() for cell in cells]
    assert said[0] == "not defined: constant input" and said[1].startswith("not defined")
    assert said[5] == "not defined: n = 1 95 % bootstrap" and said[7] == "not defined sign-flip"
    assert said[8] == "not defined: the computation gave no finite number"
    assert (said[9], said[11], said[15]) == ("no interval", "no test", "no test")
    assert not re.search(r"\b(nan|inf|None)\b", Tree(text).text())


def test_an_interval_may_be_open():
    assert "[4.90, ∞]" in render(page(headlines=(headline(high=math.inf),)))


def test_a_note_stands_once():
    assert render(page(headlines=(headline(note="over roles"),))).count("over roles") == 1
    assert render(page(headlines=(headline(note="over roles", p=None),))).count("over roles") == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"p": 1.2}, r"p = 1.2; a p value lies between 0 and 1"), ({"low": 10.0}, r"\[10.0, 9.61\]; swap")],
)
def test_impossible_headlines_are_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        headline(**wrong)


def test_a_confidence_has_a_level_and_a_reason():
    with pytest.raises((ValueError, TypeError), match="'sure'"):  # the type checker is there first
        page(confidence=("sure", "because"))
    with pytest.raises(ValueError, match="'high' has no reason"):
        page(confidence=("high", " "))


@pytest.mark.parametrize(
    "value",
    [1.0, 0.5, -0.02, 9.996, 999.6, 0.0123456, 123456.0, 999_999.0, 3e-7, -4.2e9, 0.00012345, 7.0, 2 / 3],
)
def test_three_digits_are_within_half_of_the_third(value: float):
    text = three_digits(value).replace("−", "-")
    assert math.isclose(float(text), value, rel_tol=0.005)
    digits = text.split("e")[0].replace("-", "").replace(".", "").lstrip("0")
    assert len(digits) == 3 or (abs(value) >= 999.5 and set(digits[3:]) == {"0"})
    assert three_digits(-value).replace("−", "-") == f"-{text}".replace("--", "")


def test_p_values_are_written_as_in_papers():
    assert p_value(0.012) == "p = 0.012" and p_value(0.0009) == "p < 0.001" and p_value(0.0) == "p < 0.001"
    assert p_value(0.34) == "p = 0.34" and p_value(1.0) == "p = 1.00"


def test_values_of_the_set_up_are_plain_text():
    assert shown({"top_p": 0.95, "on": True}) == "top_p: 0.95, on: yes"
    assert shown([None, 0.1 + 0.2, math.nan]) == "none, 0.3, not defined" and shown(()) == "none"


def test_fault_100_hostile_text_adds_no_element_and_no_attribute():
    evil, harmless = Tree(render(hostile_page())), Tree(render(page(samples=hostile_page().samples)))
    assert not evil.of("img") and len(evil.of("script")) == len(harmless.of("script"))
    for tag, attributes in evil.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("href") or "#").startswith(("#", "figures/"))
        assert HOSTILE not in (attributes.get("id") or "") + (attributes.get("class") or "")
    ids = [attributes["id"] for _, attributes in evil.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[a-z0-9-]+", str(name)) for name in ids)
    assert "{{ 7*7 }}" in evil.text() and "<img src=x onerror=" in evil.text()


@pytest.mark.parametrize("name", ["../up", "a b", HOSTILE])
def test_fault_100_a_figure_is_named_like_a_file_or_refused(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match="cannot name a figure's file"):
        write_report(page(figures={name: (curve(), "")}), tmp_path / "run")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_fault_101_terminal_escapes_and_control_characters_are_stripped(tmp_path: Path):
    assert (
        clean("a\x1b[1;31mb\x1b[0m\x1b]0;title\x07c\x1bMd\x00\x9b\r\x7f\u202e\ud800e\tf\ng") == "abcde\tf\ng"
    )
    assert clean("naïve 你好 🏴‍☠️ \u200d") == "naïve 你好 🏴‍☠️ \u200d"
    text = write_report(hostile_page(), tmp_path).read_text()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert "[31m" not in Tree(text).text() and "example.com" not in Tree(text).text()


def test_half_a_character_in_a_text_can_be_written(tmp_path: Path):
    half = (Sample("one", {}, (("free", "lone \ud83c half"),), ""),)
    assert "lone  half" in write_report(page(samples=half), tmp_path).read_text()


def test_the_same_page_gives_the_same_bytes_and_one_script_a_folder(tmp_path: Path):
    def files(folder: Path) -> dict[str, bytes]:
        write_report(page(), folder)
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }

    first, again = files(tmp_path / "first"), files(tmp_path / "again")
    assert first == again == files(tmp_path / "first")
    assert set(first) == {"report.html", "figures/plotly.min.js"} | {
        f"figures/{name}.{kind}" for name in ("norms", "drift") for kind in ("html", "json")
    }
    assert len(first["report.html"]) < 100_000


def test_the_page_names_no_other_host_and_lets_no_other_script_run():
    text = render(page())
    assert "http" not in text.replace("http-equiv", "")
    policy = str(Tree(text).of("meta")[1]["content"])
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1 and f"'sha256-{digest}'" in policy
    assert (
        "default-src 'none'" in policy and "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    )


def test_a_page_without_figures_has_no_script_and_no_folder_of_figures(tmp_path: Path):
    text = write_report(page(figures={}), tmp_path).read_text()
    assert not Tree(text).of("script") and [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_fault_104_without_a_chrome_the_page_is_complete_or_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chrome")
    with pytest.warns(UserWarning, match="no Chrome or Chromium was found"):
        path = write_report(page(), tmp_path / "lenient", formats=["png"])
    assert path.read_text() == render(page())
    with (
        pytest.warns(UserWarning, match="no Chrome or Chromium was found"),
        pytest.raises(RuntimeError, match="apt-get install chromium"),
    ):
        write_report(page(), tmp_path / "strict", formats=["png"], strict_figures=True)


def test_readers_without_sight_find_names_and_headers():
    tree = Tree(render(page()))
    ids = {attributes.get("id") for _, attributes in tree.elements}
    assert tree.of("html")[0]["lang"] == "en"
    assert all(cell.get("scope") in ("row", "col") for cell in tree.of("th"))
    labels = [a[key] for _, a in tree.elements for key in ("aria-labelledby", "aria-describedby") if key in a]
    assert len(labels) == len(SECTIONS) + 3 * 2 and set(labels) <= ids


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_stands_out_from_its_ground_as_the_guidelines_for_contrast_ask():
    style = render(page()).split("<style>")[1].split("</style>")[0]
    named = dict(re.findall(r"--(\w+): (#\w{6})", style))
    pairs = [
        (named[name], ground) for name in ("ink", "quiet", "accent") for ground in ("#ffffff", named["wash"])
    ]
    pairs += [(colour, "#ffffff") for colour in re.findall(r"\.undefined { color: (#\w{6})", style)]
    pairs += re.findall(r"\.kind-\d { color: (#\w{6}); background: (#\w{6})", style)
    pairs += [
        (ink, back) for back, ink in re.findall(r"level-\w+ { background: (#\w{6}); color: (#\w{6})", style)
    ]
    assert len(pairs) == 6 + 1 + 6 + 3
    for ink, ground in pairs:
        assert (luminance(ground) + 0.05) / (luminance(ink) + 0.05) >= 4.5, (ink, ground)


# Each copy of the page tells the page around it what became of it; a file may not look into another.
WATCH = """
var refused = [];
document.addEventListener('securitypolicyviolation', e => refused.push(e.blockedURI));
addEventListener('load', () => setTimeout(() => parent.postMessage([location.hash.slice(1), {
  title: document.title, refused: refused, svgs: document.querySelectorAll('.drawing .main-svg').length,
  drawn: [...document.querySelectorAll('.drawing')].map(e => e.querySelectorAll('.main-svg').length > 0),
  loaded: performance.getEntriesByType('resource').map(e => e.name),
  images: document.images.length, wide: document.documentElement.scrollWidth, window: innerWidth,
  clipped: [...document.querySelectorAll('.drawing')].map(e => e.scrollWidth - e.clientWidth),
}], '*'), 1500));
"""
AROUND = """<!DOCTYPE html><body><script>
onmessage = e => document.body.setAttribute('data-' + e.data[0], JSON.stringify(e.data[1]));
</script>"""


@pytest.mark.browser
@pytest.mark.xdist_group("browser")
def test_fault_100_in_a_browser_figures_are_drawn_nothing_runs_and_nobody_is_asked(tmp_path: Path):
    browser = chrome()
    text = write_report(hostile_page(), tmp_path).read_text()
    digest = base64.b64encode(hashlib.sha256(WATCH.encode()).digest()).decode()
    text = text.replace("script-src 'self'", f"script-src 'self' 'sha256-{digest}'")
    text = text.replace("<title>", f"<script>{WATCH}</script><title>")
    (tmp_path / "watched.html").write_text(text)
    # what if escaping failed one day: a script and an image of another host stand in the page as they are
    (tmp_path / "broken.html").write_text(
        text.replace("</main>", "<script>document.title='x'</script><img src='https://example.com/a'></main>")
    )
    frames = [("wide", "watched", 1280), ("narrow", "watched", 420), ("broken", "broken", 1280)]
    (tmp_path / "around.html").write_text(
        AROUND
        + "".join(
            f'<iframe src="{file}.html#{name}" width={width} height=900 style="border:0"></iframe>'
            for name, file, width in frames
        )
    )
    dom = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-sync", "--disable-background-networking", "--disable-component-update",
         "--virtual-time-budget=6000", "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}",
         (tmp_path / "around.html").as_uri()],
        capture_output=True, text=True, timeout=100,
    ).stdout  # fmt: skip
    body = Tree(dom).of("body")[0]
    seen = {name: json.loads(body[f"data-{name}"] or "") for name, _, _ in frames}
    for name, _, width in frames:
        assert seen[name]["drawn"] == [True, True] and seen[name]["window"] == width
        assert seen[name]["title"].startswith("</script><script>document.title='x'")
    for name in ("wide", "narrow"):
        assert seen[name]["refused"] == [] and seen[name]["images"] == 0
        assert all(url.startswith("file:") for url in seen[name]["loaded"])
        assert seen[name]["wide"] <= seen[name]["window"] and max(seen[name]["clipped"]) <= 0
    assert seen["broken"]["refused"] == ["inline", "https://example.com/a"]
