"""Rebuild the emoji sheets that kdzoo_vision ships (task `emoji-retrieval`).

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 --pack-destination DIR
    python tools/build_emoji.py DIR

Reads the two tarballs without unpacking them to disk and writes, under kdzoo_vision/data/files:
one PNG sheet per drawing style, `emoji-index.json` (what is drawn in which cell) and `emoji-manifest.json` (sources,
seed, splits and the sha256 of the other files). The same tarballs, Pillow and zlib give the same bytes; with another
zlib the PNG bytes may differ while the pixels are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

FILES = Path(__file__).parents[1] / "plugins/vision/src/kdzoo_vision/data/files"
VERSION = "16.0.0"
STYLES = {  # style -> licence of the drawings and their authors
    "google": ("Apache-2.0", "Noto Emoji 2.048, Google Inc. and other contributors"),
    "twitter": (
        "CC-BY-4.0",
        "Twemoji 16.0.1, Twitter, Jason Sofonia, Justine De Caires and other contributors",
    ),
}
SIDE = 32  # pixels of one cell; the source drawings are 64x64
COLUMNS = 40
SHARES = {"train": 0.60, "val": 0.15, "test": 0.25}
SEED = 20

# Flags differ too little between the styles to say anything about style; "Component" holds five skin patches.
LEFT_OUT = ("Flags", "Component")


def read_archive(path: Path, style: str) -> dict[str, bytes]:
    """The listing and the 64-pixel drawings. One pass in file order: a gzip stream cannot jump."""
    wanted = ("package/emoji.json", f"package/img/{style}/64/")
    content = {}
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            if member.isfile() and member.name.startswith(wanted):
                stream = archive.extractfile(member)
                content[member.name] = stream.read() if stream else b""
    return content


def drawing(png: bytes) -> np.ndarray:
    """One drawing as (32, 32, 4) uint8 with straight alpha, averaged over 2x2 pixels of the original."""
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), dtype=np.float64)
    # Averaging must weigh colours by their opacity, else invisible black darkens every outline.
    rgba = np.concatenate([rgba[..., :3] * rgba[..., 3:] / 255, rgba[..., 3:]], axis=-1)
    rgba = rgba.reshape(SIDE, 2, SIDE, 2, 4).mean(axis=(1, 3))
    alpha = rgba[..., 3:]
    rgb = np.where(alpha > 0, rgba[..., :3] * 255 / np.maximum(alpha, 1e-9), 0)
    small = np.concatenate([rgb, alpha], axis=-1).round().clip(0, 255).astype(np.uint8)
    small[small[..., 3] == 0] = 0
    return small


def sheet(cells: list[np.ndarray]) -> bytes:
    """All cells row by row, COLUMNS in a row, as PNG."""
    rows = -(-len(cells) // COLUMNS)
    canvas = np.zeros((rows * SIDE, COLUMNS * SIDE, 4), np.uint8)
    for position, cell in enumerate(cells):
        row, column = divmod(position, COLUMNS)
        canvas[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = cell
    out = io.BytesIO()
    Image.fromarray(canvas).save(out, "PNG", optimize=True)
    return out.getvalue()


def split_subgroups(concepts: list[list[str]]) -> dict[str, list[str]]:
    """Share whole sub-groups out, group by group, each to the split that is furthest below its share.

    Going through the groups one after the other keeps every split mixed (faces, people, food, signs ...); only the
    order inside a group is random.
    """
    sizes: dict[str, dict[str, int]] = {}
    for _, _, group, subgroup in concepts:
        sizes.setdefault(group, {}).setdefault(subgroup, 0)
        sizes[group][subgroup] += 1
    rng = random.Random(SEED)
    chosen: dict[str, list[str]] = {split: [] for split in SHARES}
    have = dict.fromkeys(SHARES, 0)
    for group in sorted(sizes):
        subgroups = sorted(sizes[group])
        rng.shuffle(subgroups)
        for subgroup in subgroups:
            total = sum(have.values()) + sizes[group][subgroup]
            split = max(SHARES, key=lambda name: SHARES[name] * total - have[name])
            chosen[split].append(subgroup)
            have[split] += sizes[group][subgroup]
    return {split: sorted(names) for split, names in chosen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where `npm pack` put the two tarballs")
    folder = parser.parse_args().folder

    cells: dict[str, list[np.ndarray]] = {}
    sources = {}
    entries: list[dict] = []
    for style, (licence, authors) in STYLES.items():
        path = folder / f"emoji-datasource-{style}-{VERSION}.tgz"
        archive = read_archive(path, style)
        listing = json.loads(archive["package/emoji.json"])
        entries = [
            entry
            for entry in sorted(listing, key=lambda entry: (entry["sort_order"], entry["unified"]))
            if entry["category"] not in LEFT_OUT and all(entry[f"has_img_{name}"] for name in STYLES)
        ]
        cells[style] = [drawing(archive[f"package/img/{style}/64/{entry['image']}"]) for entry in entries]
        sources[style] = {
            "package": f"emoji-datasource-{style}@{VERSION}",
            "tarball_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "drawings": authors,
            "licence": licence,
        }

    # Some concepts share one drawing (families, in both styles): as retrieval targets they would be a coin toss, so
    # only the first of them in Unicode's order stays.
    keep: list[int] = []
    seen: set[tuple[str, bytes]] = set()
    for position in range(len(entries)):
        looks = {(style, cells[style][position].tobytes()) for style in STYLES}
        if not looks & seen:
            keep.append(position)
        seen |= looks
    concepts = [
        [entries[k]["unified"], entries[k]["name"].lower(), entries[k]["category"], entries[k]["subcategory"]]
        for k in keep
    ]

    written = {f"emoji-{style}.png": sheet([cells[style][k] for k in keep]) for style in STYLES}
    lines = ",\n".join("  " + json.dumps(concept, ensure_ascii=False) for concept in concepts)
    columns = json.dumps(["unified", "name", "group", "subgroup"])
    written["emoji-index.json"] = f'{{"columns": {columns},\n "concepts": [\n{lines}\n]}}\n'.encode()
    splits = split_subgroups(concepts)
    manifest = {
        "command": "python tools/build_emoji.py DIR",
        "sources": sources,
        "index": "emoji-data 16.0.0 by Cal Henderson, MIT; names and sub-groups are Unicode's",
        "changes": "reduced from 64x64 to 32x32, arranged in a sheet; flags and equal drawings left out",
        "side": SIDE,
        "columns": COLUMNS,
        "concepts": len(concepts),
        "dropped_equal_drawings": len(entries) - len(keep),
        "seed": SEED,
        "shares": SHARES,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in written.items()},
        "splits": splits,
    }
    FILES.mkdir(parents=True, exist_ok=True)
    for name, content in written.items():
        (FILES / name).write_bytes(content)
        print(f"{name}: {len(content):,} bytes")
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (FILES / "emoji-manifest.json").write_text(text, encoding="utf-8")
    for split, names in splits.items():
        print(f"{split}: {len(names)} sub-groups, {sum(c[3] in names for c in concepts)} concepts")


if __name__ == "__main__":
    main()
