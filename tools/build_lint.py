"""Rebuild the pairs of bad and good Python code that kdzoo_llm ships, from the documentation inside ruff.

    pip install ruff==0.17.6
    python tools/build_lint.py

Takes the "Example" and "Use instead" blocks of every rule (`ruff rule --all --output-format json`) and keeps a pair
if ruff, with that rule alone, complains about the first and not about the second. Writes, under
kdzoo_llm/data/files: `lint-pairs.json.gz`, `lint-manifest.json` and ruff's licence.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import textwrap
from collections.abc import Iterator
from importlib.metadata import distribution

from ruff import find_ruff_bin
from text_files import pack, shares_of, write

VERSION = "0.17.6"
SEED = 20
SHARES = {"train": 0.5, "pool": 0.2, "val": 0.1, "test": 0.2}
MOST_LINES = 16  # of either side
FENCE = re.compile(r"```(?:python|pycon|pyi)?\n(.*?)```", re.DOTALL)


def examples(explanation: str) -> Iterator[tuple[str, str]]:
    """(bad, good) code: a "Use instead" block and the block right before it."""
    for section in re.split(r"^## ", explanation, flags=re.MULTILINE):
        if not section.startswith("Example"):
            continue
        before, *after = re.split(r"^Use instead[^\n]*:\s*$", section, flags=re.MULTILINE)
        for part in after:
            bad, good = FENCE.findall(before), FENCE.findall(part)
            if bad and good:
                yield tuple(textwrap.dedent(side).strip() + "\n" for side in (bad[-1], good[0]))  # type: ignore[misc]
            before = part.partition("```\n")[2]


def complains(code: str, rule: str) -> bool | None:
    """Whether ruff finds the rule broken; None if it cannot read the code."""
    command = [
        find_ruff_bin(),
        "check",
        "--isolated",
        "--no-cache",
        "--select",
        rule,
        "--output-format",
        "json",
    ]
    done = subprocess.run(
        [*command, "--stdin-filename", "x.py", "-"], input=code, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        return None
    codes = {found["code"] for found in json.loads(done.stdout)}
    return None if codes - {rule} else bool(codes)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    found = distribution("ruff")
    if found.version != VERSION:
        raise SystemExit(f"ruff {found.version} is installed; the pairs are those of ruff {VERSION}")
    listed = subprocess.run(
        [find_ruff_bin(), "rule", "--all", "--output-format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    known = [rule for rule in json.loads(listed.stdout) if rule["code"]]  # syntax errors have no code
    rules = sorted(known, key=lambda rule: str(rule["code"]))
    pairs: list[tuple[str, str, str]] = []
    seen: set[str] = set()
    for rule in rules:
        if rule["preview"]:
            continue
        for bad, good in examples(rule["explanation"]):
            sides = (bad, good)
            if seen & {*sides} or bad == good or max(side.count("\n") for side in sides) > MOST_LINES:
                continue
            if complains(bad, rule["code"]) is True and complains(good, rule["code"]) is False:
                pairs.append((rule["code"], bad, good))
                seen |= {*sides}
    split = shares_of(list(dict.fromkeys(code for code, _, _ in pairs)), SHARES, SEED)
    rows = [[split[code], code, bad, good] for code, bad, good in pairs]
    licence = next(file for file in found.files or [] if file.name == "LICENSE" and "dist-info" in str(file))
    counts = {name: sum(row[0] == name for row in rows) for name in SHARES}
    manifest = {
        "command": "python tools/build_lint.py",
        "sources": [{"package": f"ruff {VERSION}"}],
        "authors": "Charlie Marsh, Astral Software Inc. and the contributors to ruff",
        "licence": "MIT",
        "changes": (
            "the first block of code before and after each 'Use instead'; pairs that ruff itself tells apart by their "
            f"rule, outside preview, at most {MOST_LINES} lines a side; no code twice"
        ),
        "seed": SEED,
        "shares": SHARES,
        "rules": len(split),
        "counts": counts,
    }
    content = json.dumps({"columns": ["split", "rule", "bad", "good"], "pairs": rows}, ensure_ascii=False)
    write("lint", {"lint-pairs.json.gz": pack(content)}, licence.locate().read_text("utf-8"), manifest)  # type: ignore[attr-defined]
    print(counts, f"{len(rules)} rules read")


if __name__ == "__main__":
    main()
