"""For tests of plugins: what core promises, and what a method must keep, as checks a third party can call.

Nothing is imported before it is asked for: pytest loads `kdzoo.testing.pytest_plugin` wherever kdzoo is installed, and
must not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdzoo.testing.engines import check_engine

__all__ = ["check_engine"]


def __getattr__(name: str) -> Any:
    if name == "check_engine":
        from kdzoo.testing.engines import check_engine

        return check_engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
