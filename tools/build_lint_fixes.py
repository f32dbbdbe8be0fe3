"""Rebuild the pairs of flagged and mended Python code that kdzoo_llm ships (task data `lint-fixes`).

    pip install ruff==0.17.6
    python tools/build_lint_fixes.py

Reads `ruff rule --all` and writes, under kdzoo_llm/data/files: `lint-fixes.jsonl.xz` (one pair a line) and
`lint-fixes-manifest.json`. The same ruff and liblzma give the same bytes.

A rule's explanation has sections "Example" with a block of code, then "Use instead" and another. A pair is the last
block before "Use instead" and the first after it. It stays where ruff, run on both with that rule alone, flags the
first and not the second, both are valid Python, and the second passes `kdzoo_llm.data.lint_checks.check`.

Splits: pairs whose bad or good codes share `SAME` of their token pairs (Dice's coefficient) belong together, and so do
all pairs of a rule; each such group goes to one split. The largest go to train, the others round by `ROUND` in the
order of a hash.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import re
import subprocess
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from kdzoo.rng import mix
from kdzoo_llm.data import lint_checks

FILES = Path(__file__).parents[1] / "plugins/llm/src/kdzoo_llm/data/files"
VERSION = "0.17.6"
SAME = 0.6
LARGE = 6  # pairs of a group that goes to train at once
ROUND = ("train", "pool", "train", "val", "pool", "train", "test", "train", "pool")
SPLITS = ("train", "pool", "val", "test")
LONGEST = 1200  # characters of either code

SECTION = re.compile(r"^## Examples?:?\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(python|py|pyi)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTEAD = re.compile(r"^[^\n`]*\b[Uu]se instead\b[^\n]*$", re.MULTILINE)
TOKEN = re.compile(r"\w+|[^\w\s]")


def text_of(explanation: str, heading: str) -> str:
    """A section's first paragraph, on one line."""
    found = re.search(rf"^## {re.escape(heading)}\n+(.*?)(?=^\s*$|\Z)", explanation, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def candidates(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every pair that the explanations offer."""
    found = []
    for rule in sorted((rule for rule in rules if rule["code"]), key=lambda rule: rule["code"]):
        if "Removed" in rule["status"]:
            continue
        parts = [part for section in SECTION.findall(rule["explanation"]) for part in INSTEAD.split(section)]
        number = 0
        for before, after in pairwise(parts):
            bad, good = BLOCK.findall(before), BLOCK.findall(after)
            if not bad or not good or max(len(bad[-1][1]), len(good[0][1])) > LONGEST:
                continue
            number += 1
            found.append(
                {
                    "code": rule["code"],
                    "number": number,
                    "name": rule["name"],
                    "suffix": "pyi" if "pyi" in (bad[-1][0], good[0][0]) else "py",
                    "does": text_of(rule["explanation"], "What it does"),
                    "why": text_of(rule["explanation"], "Why is this bad?"),
                    "bad": bad[-1][1],
                    "good": good[0][1],
                }
            )
    return found


def verified(pairs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The pairs that ruff confirms, with its message on the bad code, and how many go for which reason."""
    kept, gone = (
        [],
        {"bad code not flagged or not valid": 0, "good code flagged or not valid": 0, "empty answer": 0},
    )
    for pair in pairs:
        bad, good = lint_checks.diagnoses(
            pair["code"], [(pair["bad"], pair["suffix"]), (pair["good"], pair["suffix"])]
        )
        keeps = lint_checks.common_names(pair["bad"], pair["good"])
        if not bad or {item["code"] for item in bad} != {pair["code"]}:
            gone["bad code not flagged or not valid"] += 1
        elif good:
            gone["good code flagged or not valid"] += 1
        elif not lint_checks.check(pair["good"], pair | {"keeps": keeps}):
            gone["empty answer"] += 1
        else:
            kept.append(pair | {"message": bad[0]["message"], "keeps": keeps})
    return kept, gone


def alike(first: set[str], second: set[str]) -> bool:
    return 2 * len(first & second) >= SAME * (len(first) + len(second))


def grouped(pairs: list[dict[str, Any]]) -> list[list[int]]:
    """The pairs in groups that must not be parted: connected by rule or by likeness."""
    tokens = [
        [
            {f"{a} {b}" for a, b in pairwise(["<", *TOKEN.findall(pair[side]), ">"])}
            for side in ("bad", "good")
        ]
        for pair in pairs
    ]
    root = list(range(len(pairs)))

    def find(row: int) -> int:
        while root[row] != row:
            row = root[row]
        return row

    for a, b in combinations(range(len(pairs)), 2):
        if pairs[a]["code"] == pairs[b]["code"] or any(map(alike, tokens[a], tokens[b])):
            root[max(find(a), find(b))] = min(find(a), find(b))
    groups: dict[int, list[int]] = {}
    for row in range(len(pairs)):
        groups.setdefault(find(row), []).append(row)
    return list(groups.values())


def splits(pairs: list[dict[str, Any]], groups: list[list[int]]) -> list[str]:
    found = ["train"] * len(pairs)
    small = [group for group in groups if len(group) < LARGE]
    small.sort(key=lambda group: mix("lint-fixes", pairs[group[0]]["code"]))
    for place, group in enumerate(small):
        for row in group:
            found[row] = ROUND[place % len(ROUND)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FILES)
    given = parser.parse_args()
    if lint_checks.version() != VERSION:
        raise SystemExit(
            f"ruff {lint_checks.version()} is installed; expected {VERSION}: pip install ruff=={VERSION}"
        )
    said = subprocess.run(
        [lint_checks.ruff(), "rule", "--all", "--output-format", "json"], capture_output=True, check=True
    )
    offered = candidates(json.loads(said.stdout))
    pairs, gone = verified(offered)
    groups = grouped(pairs)
    for pair, split in zip(pairs, splits(pairs, groups), strict=True):
        pair["split"] = split
    pairs.sort(key=lambda pair: (SPLITS.index(pair["split"]), pair["code"], pair["number"]))
    text = "".join(json.dumps(pair, ensure_ascii=False, sort_keys=True) + "\n" for pair in pairs).encode()
    packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    manifest = {
        "command": "python tools/build_lint_fixes.py",
        "source": f"ruff {VERSION}, Copyright (c) 2022 Charles Marsh, MIT License: examples in its rules' explanations",
        "target": lint_checks.TARGET,
        "same": SAME,
        "offered": len(offered),
        "dropped": gone,
        "largest groups": sorted((len(group) for group in groups), reverse=True)[:5],
        "pairs": {split: sum(pair["split"] == split for pair in pairs) for split in SPLITS},
        "rules": {split: len({pair["code"] for pair in pairs if pair["split"] == split}) for split in SPLITS},
        "sha256_of_lines": hashlib.sha256(text).hexdigest(),
        "sha256": {"lint-fixes.jsonl.xz": hashlib.sha256(packed).hexdigest()},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "lint-fixes.jsonl.xz").write_bytes(packed)
    (given.out / "lint-fixes-manifest.json").write_text(
        json.dumps(manifest, indent=1) + "\n", encoding="utf-8"
    )
    print(json.dumps(manifest, indent=1))
    print(f"{len(packed):,} bytes of {len(text):,}")


if __name__ == "__main__":
    main()
