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
        "lint-fixes": ("batch=2", "measured=4", "teacher_steps=3"),
        "page-reading": ("batch=4",),
        "poetry": ("batch=2", "labelled=12", "measured=8", "own_texts=2"),
        "verse-endings": ("batch=2", "labelled=12", "measured=8"),
        # Without the package of the pretrained teacher: what is tested is the pair of task and method.
        "smollm2-endings": (
            "batch=2",
            "labelled=12",
            "measured=4",
            "teacher=llama-xs",
            "teacher_vocabulary=file:verses-2k",
            "teacher_steps=3",
            "answer_length=200",  # this teacher has learnt nothing and writes rare pieces, many of the student's each
        ),
        "smollm2-relations": (
            "batch=4",
            "labelled=12",
            "measured=8",
            "speaker=scripted",
            "pool_heads=80",
            "judged=80",
            "critic_batch=4",
            "match_batch=4",
        ),
        # One length of answers, so that the teacher can be recorded.
        "verses": ("batch=2", "labelled=12", "measured=8", "pad=fixed"),
        "shuffled-reasoning": (
            "batch=8",
            "student=llama-xs",
            "questions=64",
        ),
        "verse-translation": ("batch=4", "student=llama-xs", "labelled=16", "unlabelled=8", "measured=16"),
        "told-rule": ("teacher=llama-s", "base_rows=200"),
        "word-relations": (
            "batch=4",
            "labelled=12",
            "measured=8",
            "head_prompts=2",
            "tails=3",
            "judged=80",
            "critic_batch=4",
            "match_batch=4",
        ),
    }
