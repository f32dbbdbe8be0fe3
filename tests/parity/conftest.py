"""Makes ``parity.harness`` importable for the adapters: with --import-mode=importlib no test folder is on
sys.path."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = str(Path(__file__).parent.parent)
if TESTS not in sys.path:
    sys.path.append(TESTS)
