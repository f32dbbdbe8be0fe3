"""Drawings pasted on photos (task `emoji-scenes`): exact masks, objects that hide each other, rarer classes.

Two to four emoji, drawn by Google's or Twitter's hand, lie on a piece of a darkened photo. The masks are exact, since
the drawings come with their opacity: a pixel has the class of the topmost drawing that covers at least half of it, else
background, whatever the photo shows. Nothing is ignored: half a pixel decides, and the pixels of a border are what
methods for borders are about. Photos are disjoint between train (with pool), val and test, drawings are not: with
concepts kept apart, too, large nets were hardly better on val than small ones. tools/build_scenes.py makes the files;
their licences lie beside them.

A scene is a function of its split and number. All of composing is integer arithmetic on draws of SplitMix64 (or
products of whole numbers below 2^53 in float64, which no order of summation changes), so every machine and library
version gets the same bytes.

Shapes: N scenes of a split, B rows of a batch, 96 x 96 pixels.

Augmentation of train and pool, all of it drawn from the sample's seed: mirroring, scale, shift (bilinear for the image,
nearest for the labels, reflected at the border), gain and offset of the brightness.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kdzoo.errors import unknown
from kdzoo.method import Batch
from kdzoo.rng import mix, splitmix, uniforms
from kdzoo.shipped import Shipped
from kdzoo.task import Data
from kdzoo_segmentation.measures import IGNORE

FILES = Path(__file__).parent / "files"
SHIPPED = Shipped("emoji-scenes", "build_scenes.py", "kdzoo-segmentation")
SIZES = {"train": 1000, "pool": 600, "val": 100, "test": 200}
SPLITS = tuple(SIZES)
TRAINING = ("train", "pool")  # splits that are augmented
STYLES = ("google", "twitter")
METAINFO = {
    "classes": ("background", "animal", "food", "face", "vehicle", "clothes", "plant"),
    "palette": [
        [0, 0, 0], [213, 94, 0], [204, 121, 167], [240, 228, 66], [0, 114, 178], [86, 180, 233], [0, 158, 115],
    ],
}  # fmt: skip
SUBSETS = {"rare": ("clothes", "plant")}
"""Classes with the fewest objects, and in the training scenes with the fewest pixels."""

SIDE = 96  # pixels of a scene
OBJECTS = (2, 4)  # in a scene, at least and at most
FREQUENCY = {
    "animal": 20,
    "food": 18,
    "face": 18,
    "vehicle": 16,
    "clothes": 15,
    "plant": 13,
}  # per cent of objects
SMALL, LARGE = 48, 72  # side of a drawing in a scene, pixels
CROPS = (80, 96, 112, 128, 144)  # side of the piece of a photo, pixels before resizing
PAD = 2  # pixels around a drawing: blurring widens it
PHOTO, DRAWING = (60, 140), (215, 290)  # gain of the brightness, in units of 1/256
SCENE_DRAWS, OBJECT_DRAWS = 14, 14  # numbers that composing uses

MEAN, STD = 0.34, 0.27  # of the pixels in [0, 1]: about those of the training scenes
SCALE, SHIFT = 0.15, 0.08  # share, share of the side, either way
GAIN, OFFSET = 0.2, 0.05  # either way

Pixels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parts:
    """What scenes are made of.

    Attributes:
        drawings: (K, 2, 4, 48, 48) uint8, colours times opacity, then opacity; styles in the order of `STYLES`.
        concepts: K rows (code points, name, class).
        photos: name -> (3, H, W) uint8.
        split_of: photo -> split.
    """

    drawings: NDArray[np.uint8]
    concepts: tuple[tuple[str, str, str], ...]
    photos: dict[str, NDArray[np.uint8]]
    split_of: dict[str, str]


def load(split: str, labelled: int = SIZES["train"], folder: Path = FILES) -> Data:
    """One split as the task serves it.

    Args:
        split: "train" (with labels), "pool" (further scenes on the training photos, without labels), "val", "test".
        labelled: training scenes that have labels; scenes come in no order, so the first ones are taken.
        folder: where the files of tools/build_scenes.py are.

    Returns:
        Data whose items are (N, 3, 96, 96) uint8, ids "train/42". Batches have views image (B, 3, 96, 96) float32;
        labels (B, 96, 96) int64, the class, or `IGNORE` everywhere in the pool; counts item, and pixel, the pixels
        with a label.

    Raises:
        KdzooError: no such split; a file that is missing or not the one in the manifest.
    """
    images, labels = scenes(split, folder)
    if split == "train":
        images, labels = images[:labelled], labels[:labelled]
    if split == "pool":
        labels = torch.full_like(labels, IGNORE)
    ids = [f"{split}/{row}" for row in range(len(images))]
    return serve(images, labels, ids, augmented=split in TRAINING)


def serve(images: Tensor, labels: Tensor, ids: list[str], augmented: bool) -> Data:
    """Scenes of any choice and labelling as Data: what `load` does once it has chosen.

    Args:
        images: (N, 3, 96, 96) uint8.
        labels: (N, 96, 96) uint8, class numbers or `IGNORE`.
        ids: N of them.
        augmented: change the scenes of a batch that has seeds.
    """

    def collate(items: Tensor, rows: Tensor, seeds: Tensor | None) -> Batch:
        image, masks = items[rows].float() / 255, labels[rows]
        if seeds is not None and augmented:
            image, masks = augment(image, masks, seeds)
        return Batch(
            ids=[ids[row] for row in rows.tolist()],
            views={"image": image.sub_(MEAN).div_(STD)},
            labels=masks.long(),
            counts={"item": len(rows), "pixel": int((masks != IGNORE).sum())},
        )

    digest = hashlib.sha256("\n".join(ids).encode())
    for part_of in (images, labels):
        digest.update(part_of.numpy().tobytes())
    return Data(images, ids, collate, digest.hexdigest(), fixed_views=not augmented)


def augment(image: Tensor, labels: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """The training view of (B, 3, 96, 96) in [0, 1] and (B, 96, 96); a row's depends on its seed alone."""
    draw = 2 * torch.from_numpy(uniforms(seeds, 6).astype(np.float32)) - 1  # [-1, 1)
    scale = 1 / (1 + SCALE * draw[:, 0])
    shift = 2 * SHIFT * draw[:, 1:3]  # affine_grid's unit is half an image
    side = torch.where(draw[:, 3] < 0, -scale, scale)  # mirrored or not
    none = torch.zeros_like(scale)
    theta = torch.stack((side, none, shift[:, 0], none, scale, shift[:, 1]), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    options: dict[str, Any] = {"padding_mode": "reflection", "align_corners": False}
    moved = F.grid_sample(image, grid, **options)
    masks = F.grid_sample(labels.unsqueeze(1).float(), grid, mode="nearest", **options).squeeze(1)
    gain, offset = 1 + GAIN * draw[:, 4], OFFSET * draw[:, 5]
    moved.mul_(gain.view(-1, 1, 1, 1)).add_(offset.view(-1, 1, 1, 1))
    return moved, masks.to(labels.dtype)


def scenes(split: str, folder: Path = FILES) -> tuple[Tensor, Tensor]:
    """All scenes of a split and their labels, the pool too, (N, 3, 96, 96) and (N, 96, 96) uint8; made once a process.

    Raises:
        KdzooError: as `load`.
    """
    if split not in SPLITS:
        raise unknown("split of emoji-scenes", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    return _scenes(split, folder.resolve())


@cache
def _scenes(split: str, folder: Path) -> tuple[Tensor, Tensor]:
    images, labels = compose(read(folder), split, SIZES[split])
    return torch.from_numpy(images), torch.from_numpy(labels)


def compose(parts: Parts, split: str, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The first `count` scenes of a split and their labels, (N, 3, 96, 96) and (N, 96, 96) uint8."""
    of = "train" if split == "pool" else split
    photos = [name for name, where in parts.split_of.items() if where == of]
    concepts = {
        name: [row for row, concept in enumerate(parts.concepts) if concept[2] == name] for name in FREQUENCY
    }
    seeds = torch.tensor([mix("emoji-scenes", split, row) for row in range(count)])
    draws = uniforms(seeds, SCENE_DRAWS + OBJECT_DRAWS * OBJECTS[1])
    images = np.empty((count, 3, SIDE, SIDE), np.uint8)
    labels = np.zeros((count, SIDE, SIDE), np.uint8)
    for row in range(count):
        scene, objects = draws[row, :SCENE_DRAWS], draws[row, SCENE_DRAWS:].reshape(OBJECTS[1], OBJECT_DRAWS)
        canvas = ground(parts, photos, scene)
        blur = whole(scene[9], 0, 2)
        last: tuple[int, int, int] | None = None
        for draw in objects[: whole(scene[10], *OBJECTS)]:
            name = by_frequency(draw[0])
            concept = concepts[name][whole(draw[1], 0, len(concepts[name]) - 1)]
            side = whole(draw[2], SMALL, LARGE)
            rgba = cut_out(parts.drawings[concept, whole(draw[3], 0, 1)], side, blur, draw)
            last = place(draw, side, last)
            paste(canvas, labels[row], rgba, last, METAINFO["classes"].index(name))
        canvas += noise(int(seeds[row]), strength=whole(scene[11], 0, 10))
        images[row] = canvas.clip(0, 255)
    return images, labels


def whole(draw: float, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included, of a draw in [0, 1)."""
    return low + int(draw * (high - low + 1))


def by_frequency(draw: float) -> str:
    """A class, drawn by `FREQUENCY`."""
    place = whole(draw, 0, sum(FREQUENCY.values()) - 1)
    for name, share in FREQUENCY.items():
        place -= share
        if place < 0:
            return name
    raise AssertionError("the draw is below 1")


def ground(parts: Parts, photos: list[str], draw: NDArray[np.float64]) -> Pixels:
    """A piece of a photo, (3, 96, 96), resized, mirrored or not, darkened."""
    name = photos[whole(draw[0], 0, len(photos) - 1)]
    photo = parts.photos[name]
    _, high, wide = photo.shape
    fitting = [side for side in CROPS if side <= min(high, wide)]
    side = fitting[whole(draw[1], 0, len(fitting) - 1)]
    top, left = whole(draw[2], 0, high - side), whole(draw[3], 0, wide - side)
    piece = photo[:, top : top + side, left : left + side]
    if draw[4] < 0.5:
        piece = piece[:, :, ::-1]
    return lit(resized(piece, SIDE), PHOTO, draw[5])


def cut_out(rgba: NDArray[np.uint8], side: int, blur: int, draw: NDArray[np.float64]) -> Pixels:
    """A drawing at its size in the scene, (4, side + 2 PAD, side + 2 PAD), colours times opacity, then opacity."""
    if draw[4] < 0.5:
        rgba = rgba[:, :, ::-1]
    small = resized(rgba, side)
    small[:3] = np.minimum(lit(small[:3], DRAWING, draw[5]), small[3])
    padded = np.pad(small, ((0, 0), (PAD, PAD), (PAD, PAD)))
    for _ in range(blur):
        padded = blurred(padded)
    return padded


def place(draw: NDArray[np.float64], side: int, last: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Where a drawing's corner lies (top, left), and its side.

    At most a quarter of it lies outside. Half of the drawings lie so near the one before that they touch or hide it.
    """
    low, high = -(side // 4), SIDE - side + side // 4
    if last is None or draw[8] < 0.5:
        return whole(draw[9], low, high), whole(draw[10], low, high), side
    top, left, other = last
    reach = (side + other) * 2 // 5
    middle = [
        start + other // 2 - side // 2 + whole(u, -reach, reach)
        for start, u in zip((top, left), draw[9:11], strict=True)
    ]
    return min(max(middle[0], low), high), min(max(middle[1], low), high), side


def paste(
    canvas: Pixels, labels: NDArray[np.uint8], rgba: Pixels, where: tuple[int, int, int], number: int
) -> None:
    """Lay a cut-out over the scene, in place; its class where it covers at least half of a pixel."""
    top, left, side = where
    rows, columns = (_overlap(start - PAD, side + 2 * PAD) for start in (top, left))
    inside = rgba[:, rows[1], columns[1]]
    below = canvas[:, rows[0], columns[0]]
    below[:] = inside[:3] + (below * (255 - inside[3]) + 127) // 255
    labels[rows[0], columns[0]][inside[3] >= 128] = number


def _overlap(start: int, length: int) -> tuple[slice, slice]:
    """What of a cut-out's rows lies in the scene: there, and in the cut-out."""
    first, end = max(start, 0), min(start + length, SIDE)
    return slice(first, end), slice(first - start, end - start)


def resized(pixels: NDArray[Any], side: int) -> Pixels:
    """(C, h, h) at (C, side, side), by a triangle that is as wide as the larger pixel."""
    weights = triangle(pixels.shape[-1], side)
    # Whole numbers up to 255 * 2^16: exact in float64.
    found = weights @ pixels.astype(np.float64) @ weights.T
    return (found.astype(np.int64) + (1 << 15)) >> 16


@cache
def triangle(length: int, side: int) -> NDArray[np.float64]:
    """(side, length) weights, whole numbers whose rows sum to 256."""
    ours, theirs = (2 * np.arange(side) + 1) * length, (2 * np.arange(length) + 1) * side
    near = np.maximum(2 * max(side, length) - np.abs(ours[:, None] - theirs[None, :]), 0)
    weights = near * 256 // near.sum(axis=1, keepdims=True)
    weights[np.arange(side), weights.argmax(axis=1)] += 256 - weights.sum(axis=1)
    return weights.astype(np.float64)


def lit(pixels: Pixels, gains: tuple[int, int], draw: float) -> Pixels:
    """(3, h, w), all colours times one gain."""
    found: Pixels = np.minimum((pixels * whole(draw, *gains) + 128) >> 8, 255)
    return found


def blurred(pixels: Pixels) -> Pixels:
    """(C, h, w), every pixel with its neighbours by 1-2-1 along both axes; outside is 0."""
    wide = np.pad(pixels, ((0, 0), (1, 1), (1, 1)))
    rows = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    found: Pixels = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:] + 8) >> 4
    return found


def noise(seed: int, strength: int) -> Pixels:
    """(3, 96, 96) of mean about 0 and standard deviation `strength`: sums of four bytes, which are nearly normal."""
    words = splitmix(np.arange(3 * SIDE * SIDE // 2, dtype=np.uint64) + np.uint64(seed))
    found = (
        np.ascontiguousarray(words.astype("<u8")).view("<u1").reshape(-1, 4).sum(axis=1, dtype=np.int64) - 510
    )
    return ((found * strength * 443 + (1 << 15)) >> 16).reshape(
        3, SIDE, SIDE
    )  # 2^16 / 443 = 148, the sums' sd


@cache
def read(folder: Path = FILES) -> Parts:
    """All drawings and photos, verified against the manifest; read once a process.

    Raises:
        KdzooError: a file that is missing, unreadable, or not the one in the manifest.
    """
    path = folder / "scenes-manifest.json"
    keys = ("sha256", "concepts", "photos", "photo", "side", "columns")
    manifest = SHIPPED.parsed(path, SHIPPED.content(path), keys)
    sheets = [*(f"scenes-{style}.png" for style in STYLES), "scenes-colour.png", "scenes-grey.png"]
    if lacking := [name for name in sheets if name not in manifest["sha256"]]:
        raise SHIPPED.damaged(path, f"lacks the sha256 of {', '.join(lacking)}")
    found = {name: _pixels(SHIPPED.content(folder / name, manifest["sha256"][name])) for name in sheets}
    count, side, columns = len(manifest["concepts"]), manifest["side"], manifest["columns"]
    drawings = [_cells(found[f"scenes-{style}.png"], count, side, columns) for style in STYLES]
    photos = {}
    for name, entry in manifest["photos"].items():
        top = entry["place"] * manifest["photo"][0]
        cut = found[f"scenes-{entry['sheet']}.png"][top : top + entry["high"], : entry["wide"]]
        photos[name] = np.stack([cut] * 3) if cut.ndim == 2 else np.ascontiguousarray(cut.transpose(2, 0, 1))
    return Parts(
        np.stack(drawings, axis=1),
        tuple(tuple(concept) for concept in manifest["concepts"]),
        photos,
        {name: entry["split"] for name, entry in manifest["photos"].items()},
    )


def _pixels(png: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)))


def _cells(sheet: NDArray[np.uint8], count: int, side: int, columns: int) -> NDArray[np.uint8]:
    """A sheet as (count, 4, side, side), colours multiplied by opacity."""
    cells = sheet.reshape(-1, side, columns, side, 4).transpose(0, 2, 4, 1, 3).reshape(-1, 4, side, side)
    wide = cells[:count].astype(np.uint16)
    wide[:, :3] = (wide[:, :3] * wide[:, 3:] + 127) // 255
    return wide.astype(np.uint8)
