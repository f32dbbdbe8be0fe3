"""What a language task is made of: a prompt, the answer to it, and what is known about both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and its answer.

    Attributes:
        id: stable name, "train/17".
        prompt: what the model reads.
        answer: what it is to write; empty where nobody knows.
        facts: what checks and methods need beside the text, by name: a number, a rule, a label, another language.
    """

    id: str
    prompt: str
    answer: str
    facts: Mapping[str, Any] = field(default_factory=dict)
