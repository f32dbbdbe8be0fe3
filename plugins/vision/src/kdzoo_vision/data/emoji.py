"""Emoji in two drawing styles, for metric learning (task `emoji-retrieval`).

A class is a concept (one emoji); each has two images, Google's and Twitter's drawing. The splits are disjoint in
sub-groups ("animal-bird", "face-smiling"), so val and test ask for concepts of kinds never seen in training: find
the same thing as drawn by the other hand. tools/build_emoji.py makes the files; their licences lie beside them.

Shapes: N images of a split (two a concept, neighbours in order), B rows of a batch. Pixels are RGBA with the colours
already multiplied by their opacity, since only such colours may be averaged and moved.

Augmentation, all of it drawn from the sample's seed: scale, rotation, shift (bilinear), saturation, gain of each
colour, brightness, and the colour of the ground behind the drawing. No mirroring: arrows and letters would change
their concept. Evaluation: the drawing as it is, on `GROUND` grey.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.errors import unknown
from kdzoo.method import Batch
from kdzoo.rng import uniforms
from kdzoo.shipped import Shipped
from kdzoo.task import Data

FILES = Path(__file__).parent / "files"
SHIPPED = Shipped("emoji-retrieval", "build_emoji.py", "kdzoo-vision")
STYLES = ("google", "twitter")
SPLITS = ("train", "val", "test")
SIDE = 32  # pixels

GROUND = 0.5  # grey, in units of 255: black and white drawings are equally visible on it
MEAN, STD = 0.5, 0.25  # of the pixels that models see, the same for all colours

# Chosen on val with a triplet-trained CNN: two to three times these strengths cost 9 points of Recall@1 (one seed).
# (one seed).
SCALE = 0.1  # the drawing's size is multiplied by 1 +- this
ROTATION = 5.0  # degrees either way
SHIFT = 1.5  # pixels either way, along each axis
SATURATION = (0.7, 1.3)  # 0 is grey, 1 the drawing's own
GAIN = 0.1  # each colour is multiplied by 1 +- this
BRIGHTNESS = 0.05  # added to the drawing, either way, in units of 255
DRAWS = 12  # numbers a sample uses

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True, slots=True)
class Emoji:
    """The whole data set, K concepts.

    Attributes:
        pixels: (K, 2, 4, 32, 32) uint8, colours times opacity, then opacity; styles in the order of `STYLES`.
        concepts: K rows (code points "1F600", name, group, sub-group).
        splits: split -> positions of its concepts, ascending.
        hashes: file name -> sha256, as verified.
    """

    pixels: Tensor
    concepts: tuple[tuple[str, str, str, str], ...]
    splits: dict[str, tuple[int, ...]]
    hashes: dict[str, str]


def load(split: str, folder: Path = FILES) -> Data:
    """One split as the task serves it.

    Args:
        split: "train", "val" or "test".
        folder: where the files of tools/build_emoji.py are.

    Returns:
        Data whose items are (N, 4, 32, 32) uint8 (see `Emoji.pixels`), ids "<code points>/<style>", groups (N,) the
        class: the concept's position in the index of all splits. Batches have views image (B, 3, 32, 32) float32,
        labels (B,) the class, counts item and label.

    Raises:
        KdzooError: no such split; a file that is missing, unreadable, or not the one in the manifest.
    """
    if split not in SPLITS:
        raise unknown("split of emoji-retrieval", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    return _load(split, folder.resolve())


@cache
def _load(split: str, folder: Path) -> Data:
    emoji = read(folder)
    chosen = torch.tensor(emoji.splits[split])
    items = emoji.pixels[chosen].flatten(0, 1)
    ids = [f"{emoji.concepts[k][0]}/{style}" for k in emoji.splits[split] for style in STYLES]
    groups = chosen.repeat_interleave(len(STYLES))

    def collate(items: Tensor, rows: Tensor, seeds: Tensor | None) -> Batch:
        pixels = items[rows].float() / 255
        image = plain(pixels) if seeds is None else augment(pixels, seeds)
        size = len(rows)
        return Batch(
            ids=[ids[row] for row in rows.tolist()],
            views={"image": image},
            labels=groups[rows],
            counts={"item": size, "label": size},
        )

    digest = hashlib.sha256("\n".join(ids).encode())
    digest.update(groups.numpy().tobytes())
    digest.update(items.numpy().tobytes())
    return Data(items=items, ids=ids, collate=collate, hash=digest.hexdigest(), groups=groups)


def plain(pixels: Tensor) -> Tensor:
    """The evaluation view: (B, 4, 32, 32) in [0, 1] -> (B, 3, 32, 32), normalised."""
    return _normalized(torch.add(pixels[:, :3], 1 - pixels[:, 3:], alpha=GROUND))


def augment(pixels: Tensor, seeds: Tensor) -> Tensor:
    """The training view.

    Args:
        pixels: (B, 4, 32, 32) float32 in [0, 1], colours times opacity.
        seeds: (B,) int64; a row's view depends on its pixels and its seed alone.

    Returns:
        (B, 3, 32, 32), normalised as `plain`.
    """
    draw = torch.from_numpy(uniforms(seeds, DRAWS).astype(np.float32))
    both = 2 * draw - 1  # [-1, 1)

    scale = 1 + SCALE * both[:, 0]
    angle = torch.deg2rad(ROTATION * both[:, 1])
    shift = 2 * SHIFT / SIDE * both[:, 2:4]  # affine_grid's unit is half an image
    cos, sin = angle.cos() / scale, angle.sin() / scale
    theta = torch.stack((cos, -sin, shift[:, 0], sin, cos, shift[:, 1]), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, align_corners=False)  # outside is transparent

    # colours = gain * (saturation * rgb + (1 - saturation) * luma) + brightness, on a ground of one colour. All of
    # it is linear in (r, g, b, opacity), so one small matrix a sample does it: out = matrix @ rgba + ground.
    low, high = SATURATION
    saturation = (low + (high - low) * draw[:, 4]).view(-1, 1, 1)
    mix = saturation * torch.eye(3) + (1 - saturation) * torch.tensor(LUMA).expand(3, 3)
    gain = 1 + GAIN * both[:, 5:8]
    ground = draw[:, 8:11].unsqueeze(2)
    brightness = (BRIGHTNESS * both[:, 11]).view(-1, 1, 1)
    matrix = torch.cat((gain.unsqueeze(2) * mix, brightness - ground), dim=2)
    image = torch.baddbmm(ground, matrix, moved.flatten(2)).view(-1, 3, SIDE, SIDE)
    return _normalized(image.clamp_(0, 1))


def _normalized(image: Tensor) -> Tensor:
    return image.sub_(MEAN).div_(STD)


@cache
def read(folder: Path = FILES) -> Emoji:
    """All concepts, verified against the manifest; read once a process.

    Raises:
        KdzooError: a file that is missing, unreadable, or not the one in the manifest.
    """
    path = folder / "emoji-manifest.json"
    manifest = SHIPPED.parsed(path, SHIPPED.content(path), ("sha256", "splits", "columns"))
    sheet_names = [f"emoji-{style}.png" for style in STYLES]
    lacking = [
        f"the sha256 of {name}"
        for name in ("emoji-index.json", *sheet_names)
        if name not in manifest["sha256"]
    ]
    lacking += [f"the split {split}" for split in SPLITS if split not in manifest["splits"]]
    if lacking:
        raise SHIPPED.damaged(path, f"lacks {', '.join(lacking)}")
    hashes: dict[str, str] = manifest["sha256"]
    content = {name: SHIPPED.content(folder / name, expected) for name, expected in hashes.items()}
    index = SHIPPED.parsed(folder / "emoji-index.json", content["emoji-index.json"], ("concepts",))
    concepts = tuple(tuple(concept) for concept in index["concepts"])
    sheets = [_cells(content[name], len(concepts), manifest["columns"]) for name in sheet_names]
    splits = {
        split: tuple(k for k, concept in enumerate(concepts) if concept[3] in set(manifest["splits"][split]))
        for split in SPLITS
    }
    return Emoji(torch.from_numpy(np.stack(sheets, axis=1)), concepts, splits, dict(hashes))


def _cells(png: bytes, count: int, columns: int) -> np.ndarray:
    """A sheet as (count, 4, 32, 32) uint8, colours multiplied by opacity."""
    from PIL import Image

    sheet = np.asarray(Image.open(io.BytesIO(png)))
    rows = len(sheet) // SIDE
    cells = sheet.reshape(rows, SIDE, columns, SIDE, 4).transpose(0, 2, 4, 1, 3).reshape(-1, 4, SIDE, SIDE)
    cells = cells[:count].astype(np.uint16)
    cells[:, :3] = (cells[:, :3] * cells[:, 3:] + 127) // 255
    return cells.astype(np.uint8)
