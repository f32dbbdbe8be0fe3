"""Rebuild the part of Fashion-MNIST that kdzoo_vision ships (task `fashion-few-labels`).

    apt-get download dataset-fashion-mnist
    python tools/build_fashion.py --source dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb

`--source` is that Debian package or a folder with the four ``*-ubyte.gz`` files. Their unpacked content is
checked against the sha256 below, so the same rows come out everywhere. Written to kdzoo_vision/data/files:
one PNG sheet a split, `fashion-labels.npz` and `fashion-manifest.json` (sources, choice of rows, counts,
sha256 of each file). With another Pillow or zlib the PNG bytes may differ while the pixels are the same.

The choice of rows: all rows of the official part are ranked by sha256("SEED/part/row").
train   the first 50 rows of each class of the official training part; sample i is of class i mod 10, so that
        any prefix is balanced
pool    the first 12,000 other rows of the training part, whatever their class; their labels are not shipped
val     the first 200 rows of each class of the official test part, in rank order
test    the next 500 rows of each class of the official test part, in rank order
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

FILES = Path(__file__).parents[1] / "plugins/vision/src/kdzoo_vision/data/files"
SEED = 20
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SIDE = 28  # pixels
COLUMNS = 100  # images side by side in a sheet
TRAIN, POOL, VAL, TEST = 50, 12_000, 200, 500  # a class, except POOL
CONTENT = {  # sha256 of the unpacked files
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def read_source(source: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Official part ("train", "t10k") -> images (N, 28, 28) uint8, labels (N,) uint8."""
    if source.is_file():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["dpkg-deb", "-x", str(source), folder], check=True)
            return read_source(Path(folder) / "usr/share/datasets/fashion-mnist")
    parts = {}
    for part in ("train", "t10k"):
        images = _idx(source, f"{part}-images-idx3-ubyte", header=16).reshape(-1, SIDE, SIDE)
        parts[part] = images, _idx(source, f"{part}-labels-idx1-ubyte", header=8)
    return parts


def _idx(folder: Path, name: str, header: int) -> np.ndarray:
    path = folder / f"{name}.gz"
    if not path.is_file():
        raise SystemExit(
            f"{path} is not there. Give --source the Debian package or the folder that holds it."
        )
    content = gzip.decompress(path.read_bytes())
    found = hashlib.sha256(content).hexdigest()
    if found != CONTENT[name]:
        raise SystemExit(f"{path}: its content has sha256 {found}, not {CONTENT[name]}. Download it again.")
    return np.frombuffer(content, np.uint8, offset=header)


def ranked(part: str, count: int) -> np.ndarray:
    """The rows of a part in an order that depends on SEED alone, not on any library's generator."""
    keys = [hashlib.sha256(f"{SEED}/{part}/{row}".encode()).digest() for row in range(count)]
    return np.array(sorted(range(count), key=keys.__getitem__))


def choose(train_labels: np.ndarray, test_labels: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    """Split -> (official part, rows)."""
    order = ranked("train", len(train_labels))
    per_class = np.stack([order[train_labels[order] == c][:TRAIN] for c in range(len(CLASSES))])
    train = per_class.T.flatten()  # sample i is of class i mod 10
    pool = order[~np.isin(order, train)][:POOL]

    order = ranked("t10k", len(test_labels))
    rank = np.empty(len(order), int)  # how many rows of the same class come before
    for c in range(len(CLASSES)):
        mine = test_labels[order] == c
        rank[mine] = np.arange(mine.sum())
    val, test = order[rank < VAL], order[(rank >= VAL) & (rank < VAL + TEST)]
    return {"train": ("train", train), "pool": ("train", pool), "val": ("t10k", val), "test": ("t10k", test)}


def write_sheet(path: Path, images: np.ndarray) -> None:
    """(N, 28, 28), N a multiple of COLUMNS, as one grey PNG, row by row."""
    sheet = images.reshape(-1, COLUMNS, SIDE, SIDE).transpose(0, 2, 1, 3).reshape(-1, COLUMNS * SIDE)
    Image.fromarray(sheet).save(path, "PNG", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FILES)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    parts = read_source(args.source)
    chosen = choose(parts["train"][1], parts["t10k"][1])
    seen = parts["train"][0] / np.float32(255)
    splits, labels, names = {}, {}, []
    for split, (part, rows) in chosen.items():
        images, classes = parts[part][0][rows], parts[part][1][rows]
        name = f"fashion-{split}.png"
        names.append(name)
        write_sheet(args.out / name, images)
        splits[split] = {
            "file": name,
            "count": len(rows),
            "from": f"{part}-images-idx3-ubyte",
            "rows_sha256": hashlib.sha256(rows.astype("<i4").tobytes()).hexdigest(),
            "pixels_sha256": hashlib.sha256(images.tobytes()).hexdigest(),
        }
        if split != "pool":
            labels[split] = classes
            splits[split]["per_class"] = np.bincount(classes, minlength=len(CLASSES)).tolist()
    names.append("fashion-labels.npz")
    np.savez_compressed(args.out / names[-1], **labels)

    manifest = {
        "title": "Fashion-MNIST (a part)",
        "source": "https://github.com/zalandoresearch/fashion-mnist, Debian package dataset-fashion-mnist "
        "0.0~git20200523.55506a9-1",
        "paper": "Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747",
        "licence": "MIT, Copyright (c) 2017 Zalando SE (fashion-LICENSE.txt)",
        "command": "python tools/build_fashion.py --source DEB",
        "seed": SEED,
        "classes": CLASSES,
        "mean": round(float(seen.mean(dtype=np.float64)), 4),
        "std": round(float(seen.std(dtype=np.float64)), 4),
        "columns": COLUMNS,
        "source_sha256": CONTENT,
        "splits": splits,
        "sha256": {name: hashlib.sha256((args.out / name).read_bytes()).hexdigest() for name in names},
    }
    (args.out / "fashion-manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    for name in names:
        print(f"{name}: {(args.out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
