"""The answer that a model's text gives, in the forms that data sets of reasoning have, and whether it is right.

A text says its answer behind a mark, most often "-->". Behind the first mark the first candidate counts; without a mark
in the text the last candidate of all of it. What a candidate is depends on the form:

    number   digits with sign and fraction, thousands' commas taken out; compared as text, so 4.0 is not 4
    float    the same, compared as numbers
    A-C, A-E, A-F   a capital letter of that range, wherever it stands: the B of "Because" is a B
    yes-no   the word yes or no, whatever the case
    string   all of the text without blanks, full stops and quotation marks, whatever the case

A text without a candidate is its own answer, which is right only by accident.

Source: 2hojae/mentor-kd@ec9ea11 src/evaluator.py:Evaluator.
"""

from __future__ import annotations

import re

from kdzoo.errors import unknown

MARK = "-->"
"""What stands between a rationale and its answer (task type ft_cot_token)."""
NATURAL = "Therefore, the answer is"
"""The same in words (task type ft_cot_natural)."""

FORMS = ("number", "float", "A-C", "A-E", "A-F", "yes-no", "string")
DATA_SETS = {
    "gsm8k": "number", "asdiv": "number", "multiarith": "number", "svamp": "float", "addsub": "float",
    "single_eq": "float", "commonsense_qa": "A-E", "aqua": "A-E", "date_understanding": "A-F",
    "tracking_shuffled_objects": "A-C", "strategy_qa": "yes-no", "coin_flip": "yes-no",
    "last_letter_concatenation": "string",
}  # fmt: skip
"""Data set -> form, as the official evaluator has them."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_STOPS = re.compile(r"[\"'\n.\s:,]")
_BLANKS = re.compile(r"[\"'\n.\s]")
_CLOSE = 1e-6  # numbers nearer than this are one; src/evaluator.py:_compare_prediction_and_answer


def candidates(text: str, form: str) -> list[str]:
    """All that could be the answer in a text; empty where there is none.

    Raises:
        KdzooError: no such form.
    """
    if form in ("number", "float"):
        return _NUMBER.findall(text.replace(",", ""))
    if form in ("A-C", "A-E", "A-F"):
        return re.findall(f"[{form}]", text)
    if form == "yes-no":
        return [word for word in _STOPS.sub(" ", text.lower()).split(" ") if word in ("yes", "no")]
    if form == "string":
        return [_BLANKS.sub("", text)]
    raise unknown("form of an answer", form, FORMS, "Each data set of reasoning has one.")


def extracted(text: str, form: str, mark: str = MARK) -> str | float:
    """The answer that a text gives.

    Args:
        text: what a model wrote, without its prompt.
        form: one of `FORMS`.
        mark: what the answer stands behind; "": the first candidate of the text counts.

    Returns:
        The candidate; a number in the form "float" that has one; else the text itself, from the mark on.

    Raises:
        KdzooError: no such form.
    """
    place = text.find(mark)
    said = text[place + len(mark) :] if place >= 0 else text
    found = candidates(said, form)
    if not found:
        return said
    chosen = found[0] if place >= 0 else found[-1]
    return float(chosen) if form == "float" else chosen


def known(answer: str, form: str) -> str | float:
    """A right answer as its data set writes it, brought into the form of `extracted`.

    Raises:
        KdzooError: no such form.
        ValueError: a number was expected.
    """
    if form in ("number", "float"):
        answer = answer.replace(",", "")
        return float(answer) if form == "float" else answer
    if form not in FORMS:
        raise unknown("form of an answer", form, FORMS, "Each data set of reasoning has one.")
    # "A. because": the letter alone.
    return answer.lower() if form == "yes-no" else answer.split()[0][0] if form == "A-E" else answer


def is_right(text: str, answer: str, form: str, mark: str = MARK) -> bool:
    """Whether a text gives the answer that is known to be right.

    Args:
        text, form, mark: as in `extracted`.
        answer: as the data set writes it.
    """
    said, right = extracted(text, form, mark), known(answer, form)
    if isinstance(right, float):
        return isinstance(said, float) and abs(said - right) <= _CLOSE
    assert isinstance(said, str)
    return said.lower() == right.lower() if form == "string" else said == right


def before(text: str, mark: str = MARK) -> str:
    """What a text says before its mark, without blanks around it; all of it where there is none."""
    return text.partition(mark)[0].strip()


def with_answer(rationale: str, answer: str, mark: str = MARK) -> str:
    """A target: a rationale, the mark and the answer; the answer alone where there is no rationale."""
    return f"{rationale} {mark} {answer}" if rationale else answer
