"""The answer in what a model wrote, as the official code of Mentor-KD takes it out (card mentor-kd, C7).

Behind the first arrow, up to the next one, the first candidate counts; in a text without an arrow the last. What a
candidate is depends on the data set: `KINDS`. Where there is none, the text itself is the answer.
"""

from __future__ import annotations

import re

from kdzoo.errors import unknown
from kdzoo_llm.data.reasoning import ARROW

NUMBER = r"-?\d+(?:\.\d+)?"
KINDS = {
    "number": NUMBER,  # gsm8k
    "decimal": NUMBER,  # svamp, asdiv: compared as numbers
    "letters-c": "[A-C]",
    "letters-e": "[A-E]",
    "letters-f": "[A-F]",
    "yes-no": r"\b(?:yes|no)\b",
    "whole": "",
}


def extract(text: str, kind: str) -> str:
    """The answer in a text: a number without commas, a capital letter, "yes" or "no", or all behind the arrow.

    Letters are found inside words, too ("Because" holds a B), as in the official code.

    Args:
        text: what was written.
        kind: a key of `KINDS`.

    Raises:
        KdzooError: no such kind.

    Source: 2hojae/mentor-kd@ec9ea11 src/evaluator.py:Evaluator.

    Example:
        >>> extract("1,200 and 34 more --> 1,234 apples", "number"), extract("first 5 then 7", "number")
        ('1234', '7')
    """
    if kind not in KINDS:
        raise unknown("kind of answers", kind, KINDS, f"There are {', '.join(KINDS)}.")
    before, arrow, after = text.partition(ARROW)
    part = after.partition(ARROW)[0] if arrow else before
    if kind == "whole":
        return part.strip()
    cleaned = part.replace(",", "") if KINDS[kind] == NUMBER else part
    found = re.findall(KINDS[kind], cleaned.lower() if kind == "yes-no" else cleaned)
    if not found:
        return part
    return str(found[0] if arrow else found[-1])


def is_same(text: str, answer: str, kind: str) -> bool:
    """Whether the answer in a text is the right one, which may be written with commas.

    "decimal" compares values: 4.0 is 4. Where one of the two is no number, they are not the same.
    """
    found = extract(text, kind)
    if kind != "decimal":
        return found == (answer.replace(",", "") if kind == "number" else answer.strip())
    try:
        return float(found) == float(answer.replace(",", ""))
    except ValueError:
        return False
