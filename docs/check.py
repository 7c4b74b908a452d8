"""The built pages ask for nothing from outside, hold what they point at, and name no place of this machine.

`python docs/check.py docs/_build/html` ends with 1 and a line for each fault.
"""

import re
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"src", "srcset", "poster", "data", "background"}  # attributes that a browser fetches in any element
LINKED = {"link", "use", "image", "base"}  # elements whose href is fetched
OUTSIDE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"(?:@import\s+(?:url\()?|url\()\s*['\"]?([^'\");\s]+)")


class Page(HTMLParser):
    """What a page fetches, where it links to, its anchors, its styles and its words."""

    def __init__(self, text: str):
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag if tag in ("style", "script") else ""
        for name, value in attrs:
            if name in LOADED or (name == "href" and tag in LINKED):
                self.fetched.append(value or "")
            elif name == "href":
                self.links.append(value or "")
            elif name == "style":
                self.styles.append(value or "")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "style":
            self.styles.append(data)
        elif self.inside != "script":
            self.words.append(data)


def faults_of(path: Path, root: Path) -> list[str]:
    """What is wrong with one page."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    asked = [*page.fetched, *(url for style in page.styles for url in IN_STYLE.findall(style))]
    found = [f"asks for {url}" for url in asked if OUTSIDE.match(url)]
    found += [f"points at {url}, which is not there" for url in [*asked, *page.links] if missing(url, path)]
    if "plotly-graph-div" in text and "plotly.min.js" not in text:
        found.append("has a figure and not plotly's script")
    words = "".join(page.words)
    places = {str(root), str(Path.home()), tempfile.gettempdir(), sys.prefix}
    found += [f"names {place}" for place in sorted(places) if re.search(rf"{re.escape(place)}[/\\]", words)]
    return found


def missing(url: str, page: Path) -> bool:
    """Whether a link within the pages leads nowhere."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc or not parts.path:
        return False
    return not (page.parent / unquote(parts.path)).exists()


def main(folder: Path) -> int:
    """Every page and style sheet of a build."""
    found = [
        f"{path.relative_to(folder)}: {fault}"
        for path in sorted(folder.rglob("*.html"))
        for fault in faults_of(path, Path(__file__).resolve().parents[1])
    ]
    for path in sorted(folder.rglob("*.css")):
        urls = IN_STYLE.findall(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(folder)}: asks for {url}" for url in urls if OUTSIDE.match(url)]
    print("\n".join(found) or f"{len(list(folder.rglob('*.html')))} pages ask for nothing from outside")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
