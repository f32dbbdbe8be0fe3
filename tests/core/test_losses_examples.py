"""The examples in the docstrings of the losses and metrics run, and say what they print."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdzoo import losses

MODULES = sorted(f"kdzoo.losses.{found.name}" for found in pkgutil.iter_modules(losses.__path__))


@pytest.mark.parametrize("name", [*MODULES, "kdzoo.cka", "kdzoo.label_metrics", "kdzoo.metrics"])
def test_examples_run(name: str) -> None:
    """An example that was never tried, or whose output has changed."""
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_the_package_itself_is_free() -> None:
    """`import kdzoo.losses` that drags torch into the start of the command line."""
    code = "import sys, kdzoo.losses; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_kl_is_written_once() -> None:
    """torch's own kl_div, with its reversed arguments and its mean over classes, used beside `kl_divergence`."""
    root = Path(losses.__path__[0]).parents[3]
    folders = [root / "core" / "src", *(root / "plugins").glob("*/src")]
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    assert sources
    guilty = [str(path) for path in sources if re.search(r"\bkl_div\(|KLDivLoss\(", path.read_text())]
    assert guilty == []
