"""The contract of kdzoo on every method of the plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from kdzoo.testing.contract import MethodContract


class TestContract(MethodContract):
    plugin = "llm"
    rows = 16
    # Small batches, small nets, few rows: what is tested does not depend on their size.
    settings: ClassVar[Mapping[str, Sequence[str]]] = {
        "told-rule": ("teacher=llama-s", "base_rows=200"),
    }
