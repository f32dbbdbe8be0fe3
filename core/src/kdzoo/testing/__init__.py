"""For tests of plugins: what core promises, as checks a third party can call."""

from __future__ import annotations

from kdzoo.testing.engines import check_engine

__all__ = ["check_engine"]
