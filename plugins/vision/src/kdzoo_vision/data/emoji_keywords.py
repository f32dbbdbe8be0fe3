"""Unicode's English keywords of the drawn emoji, for multi-label classification (task `emoji-keywords`).

The drawings are those of `kdzoo_vision.data.emoji`, in both styles; an image carries all the labels of its concept.
Splits are disjoint in concepts (train: labelled, pool: their labels only taught the teacher, val, test), so that no
drawing of a concept in one style is known when the other is asked for. tools/build_emoji_keywords.py makes the file
of labels and shares each label out over the splits.

Shapes: N images of a split (two a concept, neighbours in order), B rows of a batch, C labels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kdzoo.errors import unknown
from kdzoo.method import Batch
from kdzoo.shipped import Shipped
from kdzoo.task import Data
from kdzoo_vision.data import emoji

FILES = emoji.FILES
SHIPPED = Shipped("emoji-keywords", "build_emoji_keywords.py", "kdzoo-vision")
NAMES = ("emoji-keywords.json", "emoji-index.json")
SPLITS = ("train", "pool", "val", "test")


@dataclass(frozen=True, slots=True)
class Keywords:
    """The labels of all concepts.

    Attributes:
        names: the C labels, alphabetical.
        counts: of how many concepts (all splits) each is a label.
        rare: (C,) bool, labels of few concepts (the manifest's bound), fixed when the file was built.
        concepts: code points -> (split, its labels as positions in `names`).
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    rare: Tensor
    concepts: dict[str, tuple[str, tuple[int, ...]]]


def load(split: str, *, labelled: bool = True, folder: Path = FILES) -> Data:
    """One split as the task serves it.

    Args:
        split: "train", "pool", "val" or "test"; "all" is train and pool together, the teacher's training set.
        labelled: False hides the labels: every one is -1, and the batch counts no labelled item.
        folder: where the shipped files are.

    Returns:
        Data whose items are (N, 4, 32, 32) uint8, ids "<code points>/<style>". Batches have the view image
        (B, 3, 32, 32) float32, labels (B, C) float32 of 0 and 1, counts item and label.

    Raises:
        KdzooError: no such split; a file that is missing, unreadable, or not the one in the manifest.
    """
    if split not in (*SPLITS, "all"):
        raise unknown("split of emoji-keywords", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    return _load(split, labelled, folder.resolve())


@cache
def _load(split: str, labelled: bool, folder: Path) -> Data:
    drawn, keywords = emoji.read(folder), read(folder)
    wanted = ("train", "pool") if split == "all" else (split,)
    chosen = [
        (position, points, keywords.concepts[points][1])
        for position, (points, *_) in enumerate(drawn.concepts)
        if points in keywords.concepts and keywords.concepts[points][0] in wanted
    ]
    items = drawn.pixels[torch.tensor([position for position, _, _ in chosen])].flatten(0, 1)
    ids = [f"{points}/{style}" for _, points, _ in chosen for style in emoji.STYLES]
    targets = torch.zeros(len(chosen), len(keywords.names))
    for row, (_, _, labels) in enumerate(chosen):
        targets[row, list(labels)] = 1.0
    targets = targets.repeat_interleave(len(emoji.STYLES), dim=0)
    if not labelled:
        targets.fill_(-1.0)

    def collate(items: Tensor, rows: Tensor, seeds: Tensor | None) -> Batch:
        pixels = items[rows].float() / 255
        return Batch(
            ids=[ids[row] for row in rows.tolist()],
            views={"image": emoji.plain(pixels) if seeds is None else emoji.augment(pixels, seeds)},
            labels=targets[rows],
            counts={"item": len(rows), "label": len(rows) if labelled else 0},
        )

    digest = hashlib.sha256("\n".join([*ids, *keywords.names]).encode())
    digest.update(targets.numpy().tobytes())
    digest.update(items.numpy().tobytes())
    return Data(items=items, ids=ids, collate=collate, hash=digest.hexdigest())


@cache
def read(folder: Path = FILES) -> Keywords:
    """Labels and splits, verified against the manifest; read once a process.

    Raises:
        KdzooError: a file that is missing, unreadable, or not the one in the manifest.
    """
    path = folder / "emoji-keywords-manifest.json"
    manifest = SHIPPED.parsed(path, SHIPPED.content(path), ("sha256", "rare"))
    if lacking := [name for name in NAMES if name not in manifest["sha256"]]:
        raise SHIPPED.damaged(path, f"lacks the sha256 of {', '.join(lacking)}")
    content = {name: SHIPPED.content(folder / name, manifest["sha256"][name]) for name in NAMES}
    table = SHIPPED.parsed(folder / NAMES[0], content[NAMES[0]], ("labels", "counts", "concepts"))
    return Keywords(
        names=tuple(table["labels"]),
        counts=tuple(table["counts"]),
        rare=torch.tensor(table["counts"]) <= int(manifest["rare"]),
        concepts={points: (split, tuple(labels)) for points, split, labels in table["concepts"]},
    )
