"""Answers to lint prompts, checked by running ruff on them: flagged or not, valid Python or not, still the same code.

ruff is an extra of the distribution (`pip install kdzoo-llm[lint]`). It runs isolated from every configuration, with
one rule at a time, since some rules switch each other off where both are selected.
"""

from __future__ import annotations

import json
import keyword
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kdzoo.errors import KdzooError

TARGET = "py312"  # the Python that the code is checked for
KEPT = 0.5  # share of the names that must still be there
UNKNOWN = "Unknown rule selector"
SECONDS = 60  # for one run of ruff; it takes a few hundredths of one
NAME = re.compile(r"[^\W\d]\w*")
COMMENT = re.compile(r"#.*")


@cache
def ruff() -> str:
    """The path of the ruff program, of the Python package or else on PATH.

    Raises:
        KdzooError: there is none.
    """
    try:
        from ruff import find_ruff_bin

        return str(find_ruff_bin())
    except (ImportError, FileNotFoundError):
        if found := shutil.which("ruff"):
            return found
    raise KdzooError(
        "ruff is not installed: answers to lint-fixes are checked by running it, and without it none could be told "
        "right from wrong. Install it: pip install 'kdzoo-llm[lint]'."
    )


@cache
def version() -> str:
    """ruff's version, "0.17.6": what it flags changes from one to the next."""
    return run(["--version"]).split()[1]


def diagnoses(code: str, sources: Sequence[tuple[str, str]]) -> list[list[dict[str, str]]]:
    """What ruff says about each source with one rule selected.

    Args:
        code: the rule's code, "UP006".
        sources: (content, suffix) with suffix "py" or "pyi".

    Returns:
        For each source its messages, {"code": "UP006", "message": ...}; invalid Python has code "invalid-syntax".

    Raises:
        KdzooError: ruff is missing, failed, or knows no such rule.
    """
    found: list[list[dict[str, str]]] = [[] for _ in sources]
    with tempfile.TemporaryDirectory(prefix="kdzoo-lint-") as place:
        # A folder named for nothing else: ruff looks at names of packages and modules too.
        for number, (content, suffix) in enumerate(sources):
            if suffix not in ("py", "pyi"):
                raise KdzooError(
                    f"a source has the suffix {suffix!r}; expected 'py' or 'pyi', else ruff skips it."
                )
            path = Path(place) / f"answer_{number}.{suffix}"
            path.write_text(content, encoding="utf-8", errors="replace", newline="")
        said = run(
            [
                "check", "--isolated", "--no-cache", "--preview", "--ignore-noqa", "--exit-zero",
                "--target-version", TARGET, "--select", code, "--output-format", "json", place,
            ]
        )  # fmt: skip
        for item in json.loads(said):
            number = int(Path(item["filename"]).stem.rpartition("_")[2])
            found[number].append({"code": item["code"] or "invalid-syntax", "message": item["message"]})
    return found


def run(arguments: list[str]) -> str:
    """ruff's standard output."""
    try:
        done = subprocess.run(
            [ruff(), *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KdzooError(
            f"{ruff()} could not be run ({error}): no answer was checked. Install it again: "
            "pip install --force-reinstall 'kdzoo-llm[lint]'."
        ) from error
    if done.returncode != 0:
        raise KdzooError(
            f"ruff failed (exit code {done.returncode}): {done.stderr.strip()[:500]} No answer was checked. "
            "Install the version that the data were made with: pip install 'kdzoo-llm[lint]'."
        )
    if UNKNOWN in done.stderr:  # only a warning, and every answer would pass
        raise KdzooError(
            f"ruff {done.stderr.strip()[:500]}: nothing would be flagged, and every answer would count as right. "
            "Install the version that the data were made with: pip install 'kdzoo-llm[lint]'."
        )
    return done.stdout


def check(answer: str, facts: Mapping[str, Any]) -> bool:
    """Whether one answer is right; see `check_all`."""
    return check_all([answer], [facts])[0]


def check_all(answers: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether each answer mends its prompt: it is valid Python, its rule no longer flags it, it still does something
    (a statement beyond `pass`, `...` and comments, where the shipped answer has one) and holds at least `KEPT` of the
    names that prompt and shipped answer have in common. The last two keep `x = 1` from being right everywhere.

    Answers to one rule are checked in one run of ruff: a hundred answers take about a second.

    Args:
        answers: Python sources.
        facts: of the examples they answer: "code", "suffix", "keeps" (see `kdzoo_llm.data.lint_fixes`).

    Raises:
        KdzooError: ruff is missing or failed; the facts are of another task; not as many answers as facts.
    """
    if len(answers) != len(facts):
        raise KdzooError(
            f"{len(answers)} answers for {len(facts)} prompts; expected one answer for each prompt."
        )
    for one in facts:
        if lacking := [key for key in ("code", "suffix", "keeps") if key not in one]:
            raise KdzooError(
                f"the facts lack {', '.join(lacking)}; expected those of an example of lint-fixes: which rule is to be "
                "checked would be unknown."
            )
    right = [
        bool(answer.strip()) and substance(answer, one["keeps"])
        for answer, one in zip(answers, facts, strict=True)
    ]
    rules: dict[str, list[int]] = {}
    for row, one in enumerate(facts):
        if right[row]:
            rules.setdefault(one["code"], []).append(row)
    for code, rows in rules.items():
        sources = [(answers[row], facts[row]["suffix"]) for row in rows]
        for row, messages in zip(rows, diagnoses(code, sources), strict=True):
            right[row] = not messages
    return right


def substance(answer: str, keeps: Sequence[str]) -> bool:
    """Whether an answer has enough of the names that it should keep, in its code, not in its comments."""
    if not keeps:
        return any(line.strip() not in ("", "pass", "...") for line in COMMENT.sub("", answer).splitlines())
    found = names(answer)
    return sum(name in found for name in keeps) >= KEPT * len(keeps)


def common_names(bad: str, good: str) -> list[str]:
    """The names that code and mended code share, in alphabetical order."""
    return sorted(names(bad) & names(good))


def names(code: str) -> set[str]:
    """Names and words outside of comments, without Python's keywords."""
    return set(NAME.findall(COMMENT.sub("", code))) - set(keyword.kwlist)
