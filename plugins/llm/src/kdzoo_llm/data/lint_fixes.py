"""Python code that breaks a rule of the linter ruff, and code that does not; ruff itself is the judge.

The pairs are the examples in ruff's documentation of its rules (MIT licence), those whose two sides ruff tells apart;
tools/build_lint.py makes the file. Splits are disjoint in rules and in code. Judging needs the extra ``lint``.
"""

from __future__ import annotations

import ast
import json
import subprocess
from functools import lru_cache

from kdzoo.errors import KdzooError, unknown
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.packed import text

SPLITS = ("train", "pool", "val", "test")


@lru_cache
def load(split: str) -> list[Example]:
    """Bad code as prompt, good code as answer; ids are ``<split>/<rule>/<number>``.

    Raises:
        KdzooError: no such split; a file that is missing, unreadable, or not the one in the manifest.
    """
    if split not in SPLITS:
        raise unknown("split of lint-fixes", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    numbers: dict[str, int] = {}
    found = []
    for which, rule, bad, good in json.loads(text("lint", "build_lint.py", "lint-pairs.json.gz"))["pairs"]:
        if which == split:
            numbers[rule] = numbers.get(rule, -1) + 1
            found.append(Example(f"{split}/{rule}/{numbers[rule]}", bad, good))
    return found


def rule_of(example: Example) -> str:
    """The code of the rule that an example's prompt breaks, e.g. ``F401``."""
    return example.id.split("/")[1]


def is_fixed(code: str, rule: str) -> bool:
    """Whether code is Python that does something and no longer breaks the rule.

    Code that cannot be parsed, or holds no statement beyond docstrings and ``pass``, is no fix: every rule is kept
    by an empty file. Suppression comments do not count either.

    Raises:
        KdzooError: ruff is not installed, or does not know the rule.
    """
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    if not any(not isinstance(node, ast.Pass) and not _is_string(node) for node in body):
        return False
    options = ["--isolated", "--no-cache", "--quiet", "--ignore-noqa", "--select", rule]
    done = subprocess.run(
        [_binary(), "check", *options, "--stdin-filename", "x.py", "-"],
        input=code,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise KdzooError(f"ruff could not check rule '{rule}': {done.stderr.strip() or done.returncode}")
    return done.returncode == 0


def _is_string(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _binary() -> str:
    try:
        from ruff import find_ruff_bin
    except ImportError as error:
        raise KdzooError(
            "Whether code is fixed is for ruff to say, and ruff is not installed: pip install 'kdzoo-llm[lint]'."
        ) from error
    try:
        return str(find_ruff_bin())
    except FileNotFoundError as error:
        raise KdzooError(
            f"ruff is installed without its program ({error}): pip install --force-reinstall 'kdzoo-llm[lint]'."
        ) from error
