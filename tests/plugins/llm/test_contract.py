"""The contract of kdzoo on every method of the plugin, and the engine's promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from kdzoo.testing import check_engine
from kdzoo.testing.contract import MethodContract
from kdzoo_llm.engine import fit

TINY = ("student=llama-xs", "teacher=llama-xs", "eval_answers=8", "val_answers=8")


class TestContract(MethodContract):
    plugin = "llm"
    settings: ClassVar[Mapping[str, Sequence[str]]] = {
        "rule-reading": (*TINY, "labelled=200"),
        "verses": ("student=llama-xs", "teacher=llama-xs"),
        "verse-translation": ("student=t5-xs", "teacher=t5-xs", "eval_answers=8", "val_answers=8", "batch=4"),
    }
    rows = 32


def test_transformers_trainer_keeps_the_promises_of_an_engine() -> None:
    """E1 to E8: another step than core's, a resumed run that differs, a NaN that passes unseen."""
    check_engine(fit)
