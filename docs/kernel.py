"""Run at the start of every page's kernel: a figure is a div and a call to the script that the page loads."""

import warnings
from itertools import count

import plotly.io as pio
from plotly.io._base_renderers import MimetypeRenderer


class InPages(MimetypeRenderer):
    """HTML that needs `plotly.min.js` in the page and asks for nothing from outside."""

    def __init__(self):
        self.numbers = count(1)

    def to_mimebundle(self, fig_dict):
        import plotly.graph_objects as go

        from mechinterp.export import fragment

        return {"text/html": fragment(go.Figure(fig_dict), number=next(self.numbers))}


warnings.filterwarnings("ignore", message="IProgress not found")  # bars are off in the build
pio.renderers["pages"] = InPages()
pio.renderers.default = "pages"
