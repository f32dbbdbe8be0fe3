"""Python code that a rule of ruff flags, to be mended (data `lint-fixes`).

    prompt   PIE794 Class field `name` is defined multiple times
             class Person:
                 name = "Tom"
                 ...
    answer   the code that the rule's explanation offers instead

Each rule belongs to one split, and so do rules whose examples are nearly equal, so the test asks for rules never seen
(tools/build_lint_fixes.py). There are many right answers: `check` runs ruff on one and tells whether it is right, which
needs the extra `kdzoo-llm[lint]`; reading the examples does not.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import MappingProxyType

from kdzoo.errors import unknown
from kdzoo.shipped import Shipped
from kdzoo_llm.data import packed
from kdzoo_llm.data.lint_checks import check, check_all
from kdzoo_llm.examples import Example

__all__ = ["FACTS", "FILES", "SPLITS", "check", "check_all", "examples"]

FILES = Path(__file__).parent / "files"
SHIPPED = Shipped("lint-fixes", "build_lint_fixes.py", "kdzoo-llm")
SPLITS = ("train", "pool", "val", "test")
FACTS = ("code", "name", "message", "does", "why", "bad", "suffix", "keeps")


@cache
def examples(split: str, folder: Path = FILES) -> list[Example]:
    """The pairs of a split, in the order of the rules' codes.

    Args:
        split: "train", "pool" (whose answers methods may not use), "val" or "test".
        folder: where the files of tools/build_lint_fixes.py are.

    Returns:
        Examples with ids "train/PIE794/1". A prompt is the rule's code and ruff's message on the first line, then the
        code; an answer is code; both end without a newline. Facts: code, name and message of the rule; does and why,
        what it checks and why that is bad (why may be empty); bad, the code; suffix, "py" or "pyi"; keeps, the names
        that an answer should keep.

    Raises:
        KdzooError: no such split; a file that is missing or not the one in the manifest.
    """
    if split not in SPLITS:
        raise unknown("split of lint-fixes", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    rows, _ = packed.lines(SHIPPED, folder, "lint-fixes-manifest.json", "lint-fixes.jsonl.xz")
    found = []
    for pair in map(json.loads, rows):
        if pair["split"] == split:
            prompt = f"{pair['code']} {pair['message']}\n{pair['bad'].rstrip()}"
            facts = {name: tuple(pair[name]) if name == "keeps" else pair[name] for name in FACTS}
            name = f"{split}/{pair['code']}/{pair['number']}"
            found.append(Example(name, prompt, pair["good"].rstrip(), MappingProxyType(facts)))
    return found
