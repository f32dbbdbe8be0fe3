"""What the builders of kdzoo_llm's text data share: packing, manifests, splits by rank. Imported, never run."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILES = Path(__file__).parents[1] / "plugins/llm/src/kdzoo_llm/data/files"


def pack(text: str) -> bytes:
    """gzip without a time stamp: the same text and zlib give the same bytes."""
    return gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0)


def write(stem: str, files: Mapping[str, bytes], licence: str, manifest: Mapping[str, Any]) -> None:
    """Write the files, ``<stem>-LICENSE.txt`` and ``<stem>-manifest.json`` with the sha256 of each file."""
    FILES.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (FILES / name).write_bytes(content)
        print(f"{name}: {len(content):,} bytes")
    (FILES / f"{stem}-LICENSE.txt").write_text(licence, encoding="utf-8")
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    whole = {**manifest, "sha256": digests}
    text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    (FILES / f"{stem}-manifest.json").write_text(text, encoding="utf-8")


def shares_of(names: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """A split for every name: names are ranked by sha256("SEED/name") and the ranking is cut by the shares."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    chosen: dict[str, str] = {}
    start, total = 0.0, sum(shares.values())
    for split, share in shares.items():
        stop = start + share / total * len(ranked)
        chosen.update(dict.fromkeys(ranked[round(start) : round(stop)], split))
        start = stop
    return chosen
