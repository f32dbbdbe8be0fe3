"""Rebuild the keyword labels that kdzoo_vision ships for the emoji sheets (task `emoji-keywords`).

    npm pack cldr-annotations-full@48.2.0 --pack-destination DIR
    python tools/build_emoji_keywords.py DIR

Reads Unicode's English keywords out of the tarball without unpacking it, and the concepts that tools/build_emoji.py
has drawn. Writes, under kdzoo_vision/data/files: `emoji-keywords.json` (labels, the labels of every concept, splits),
`emoji-keywords-manifest.json` (source, rules, sha256) and Unicode's licence. The same tarball gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

FILES = Path(__file__).parents[1] / "plugins/vision/src/kdzoo_vision/data/files"
VERSION = "48.2.0"
LEAST = 10  # concepts that a keyword needs to become a label
RARE = 12  # a label of at most so many concepts counts as rare
SHARES = {"train": 0.20, "pool": 0.35, "val": 0.15, "test": 0.30}
SEED = 20
VARIATION = "\ufe0f"  # asks for the coloured drawing; CLDR's keys leave it out


def read_archive(path: Path) -> tuple[dict[str, set[str]], bytes]:
    """(characters -> keywords, the licence). One pass in file order: a gzip stream cannot jump."""
    wanted = {"package/annotations/en/annotations.json", "package/LICENSE"}
    content: dict[str, bytes] = {}
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            if member.isfile() and member.name in wanted:
                stream = archive.extractfile(member)
                content[member.name] = stream.read() if stream else b""
    if missing := wanted - set(content):
        raise SystemExit(f"{path} has no {', '.join(sorted(missing))}: another package or version?")
    table = json.loads(content["package/annotations/en/annotations.json"])["annotations"]["annotations"]
    words = {
        characters.replace(VARIATION, ""): {word.strip().casefold() for word in entry.get("default", [])}
        for characters, entry in table.items()
    }
    return words, content["package/LICENSE"]


def choose_labels(words: Sequence[set[str]]) -> list[str]:
    """Keywords of at least `LEAST` concepts, in alphabetical order.

    Of keywords that the very same concepts have ("no" and "not") only the first stays: it would count twice.
    """
    having: dict[str, list[int]] = {}
    for position, concept in enumerate(words):
        for word in concept:
            having.setdefault(word, []).append(position)
    labels: dict[tuple[int, ...], str] = {}
    for word in sorted(having):
        if len(having[word]) >= LEAST:
            labels.setdefault(tuple(having[word]), word)
    return sorted(labels.values())


def stratify(labels: Sequence[Sequence[int]], shares: dict[str, float], seed: int) -> list[str]:
    """A split for every concept, such that each label's concepts are shared out as the whole is.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas, ECML PKDD 2011): the rarest label first, each of its
    concepts to the split that lacks most of that label, then the one that lacks most concepts, then by chance.
    """
    rng = random.Random(seed)
    total = max((max(one) for one in labels if one), default=-1) + 1
    left = set(range(len(labels)))
    members: list[set[int]] = [{k for k in left if label in labels[k]} for label in range(total)]
    lacks_label = [{split: share * len(group) for split, share in shares.items()} for group in members]
    lacks = {split: share * len(labels) for split, share in shares.items()}
    chosen = [""] * len(labels)
    while left:
        open_labels = [label for label in range(total) if members[label]]
        if open_labels:
            label = min(open_labels, key=lambda one: (len(members[one]), one))
            group, need = sorted(members[label]), lacks_label[label]
        else:  # concepts without a label
            group, need = sorted(left), lacks
        rng.shuffle(group)
        for position in group:
            split = max(shares, key=lambda name: (need[name], lacks[name], rng.random()))
            chosen[position] = split
            lacks[split] -= 1
            left.discard(position)
            for other in labels[position]:
                members[other].discard(position)
                lacks_label[other][split] -= 1
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where `npm pack` put the tarball")
    path = parser.parse_args().folder / f"cldr-annotations-full-{VERSION}.tgz"

    words, licence = read_archive(path)
    index = (FILES / "emoji-index.json").read_bytes()
    concepts: list[str] = [row[0] for row in json.loads(index)["concepts"]]
    named: list[str] = []
    keywords: list[set[str]] = []
    for points in concepts:
        characters = "".join(chr(int(point, 16)) for point in points.split("-")).replace(VARIATION, "")
        if words.get(characters):
            named.append(points)
            keywords.append(words[characters])
    labels = choose_labels(keywords)
    number = {word: k for k, word in enumerate(labels)}
    rows = [sorted(number[word] for word in concept if word in number) for concept in keywords]
    splits = stratify(rows, SHARES, SEED)
    counts = [sum(k in row for row in rows) for k in range(len(labels))]

    head = json.dumps(
        {"labels": labels, "counts": counts, "columns": ["unified", "split", "labels"]}, ensure_ascii=False
    )
    lines = ",\n".join(
        "  " + json.dumps([points, split, row], separators=(",", ":"))
        for points, split, row in zip(named, splits, rows, strict=True)
    )
    content = f'{head[:-1]},\n "concepts": [\n{lines}\n]}}\n'.encode()
    sizes = {split: splits.count(split) for split in SHARES}
    manifest = {
        "command": "python tools/build_emoji_keywords.py DIR",
        "source": {
            "package": f"cldr-annotations-full@{VERSION}",
            "tarball_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "authors": "Unicode, Inc. and contributors to the CLDR",
            "licence": "Unicode-3.0",
        },
        "changes": (
            f"English keywords of at least {LEAST} of the drawn concepts; of keywords that the same concepts have, "
            "the first; concepts that have no keywords of their own (hair styles, people facing right) left out"
        ),
        "least": LEAST,
        "rare": RARE,
        "shares": SHARES,
        "seed": SEED,
        "concepts": sizes,
        "labels": len(labels),
        "labels_per_concept": round(sum(map(len, rows)) / len(rows), 3),
        "without_label": sum(not row for row in rows),
        "sha256": {
            "emoji-keywords.json": hashlib.sha256(content).hexdigest(),
            "emoji-index.json": hashlib.sha256(index).hexdigest(),
        },
    }
    (FILES / "emoji-keywords.json").write_bytes(content)
    (FILES / "emoji-keywords-LICENSE.txt").write_bytes(licence)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (FILES / "emoji-keywords-manifest.json").write_text(text, encoding="utf-8")
    print(f"{len(content):,} bytes, {len(labels)} labels ({sum(c <= RARE for c in counts)} rare), {sizes}")
    least = {name: len(rows) for name in SHARES}
    for split in SHARES:
        own = [row for row, its in zip(rows, splits, strict=True) if its == split]
        least[split] = min(sum(k in row for row in own) for k in range(len(labels)))
    print("fewest concepts of a label:", least)


if __name__ == "__main__":
    main()
