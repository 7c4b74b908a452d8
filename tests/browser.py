"""The browser that the tests of written pages need, or why there is none."""

import os
import shutil

import pytest

from mechinterp.doctor import CHROMES


def chrome() -> str:
    """Path of a Chrome or Chromium; without one the test skips, or fails under REQUIRE_CHROME=1."""
    for name in CHROMES:
        if path := shutil.which(name):
            return path
    reason = "no Chrome or Chromium here; `apt-get install chromium` brings one"
    if os.environ.get("REQUIRE_CHROME") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
