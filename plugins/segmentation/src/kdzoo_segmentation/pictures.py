"""Pictures of what trained nets see: a row an image; its truth, then each arm's classes above its errors."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kdzoo import catalog, roles
from kdzoo.artefacts import Store, home, write_atomic
from kdzoo.errors import KdzooError
from kdzoo.execute import open_run
from kdzoo.plan import Request, make_plan
from kdzoo.runs import Run, StageSpec
from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.segmentation import predictions

TILE, GAP, HEAD, LEGEND = 156, 6, 20, 22  # pixels
PAPER, INK, WRONG, UNCOUNTED = (255, 255, 255), (40, 40, 40), (196, 30, 58), (200, 200, 200)


def draw(request: Request, out: Path, count: int) -> tuple[int, int]:
    """Write the picture of a bench's nets on images of the validation split.

    Args:
        request: as the bench had it; its first seed and its arms are drawn.
        out: the PNG file.
        count: images, those with the most classes of `count` equal parts of the split.

    Returns:
        (width, height) in pixels.

    Raises:
        KdzooError: the task is no segmentation or says no palette, an arm has not been trained, an empty split.
    """
    plan = make_plan(request)
    info = meta(plan.task.slug)
    store, seed = Store(home()), request.first_seed
    said: dict[str, Tensor] = {}
    images = labels = torch.empty(0)
    for arm in plan.arms:
        spec = plan.runs[(arm, None if arm == "teacher" else seed)][-1]
        with TemporaryDirectory(prefix="kdzoo-pictures-") as folder:
            run = _opened(spec, store, Path(folder), f"{plan.card.slug} --task {plan.task.slug}", arm)
            if not said:
                images, labels, chosen = _chosen(run, count)
            said[arm] = _classes(run, chosen)
    picture = sheet(images, labels, said, info)
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    write_atomic(out, content.getvalue())
    return picture.size


def meta(task: str) -> Mapping[str, Any]:
    """The classes and colours that a task's module says.

    Raises:
        KdzooError: it says none, or not a colour for each class.
    """
    info: Mapping[str, Any] = getattr(catalog.load().module(task), "METAINFO", {})
    classes, palette = info.get("classes", ()), info.get("palette", ())
    if not classes:
        raise KdzooError(
            f"task {task!r} says no classes (METAINFO in its module): it is no segmentation, there is nothing to draw."
        )
    if len(palette) != len(classes):
        raise KdzooError(
            f"task {task!r} has {len(classes)} classes and a palette of {len(palette)} colours: classes could not be "
            "told apart. Give METAINFO['palette'] a colour [red, green, blue] for each class."
        )
    return info


def _opened(spec: StageSpec, store: Store, folder: Path, bench: str, arm: str) -> Run:
    """The run of an arm's last stage, with its models."""
    if lacking := [name for name, key in spec.needs.items() if store.manifest(key) is None]:
        raise KdzooError(
            f"arm {arm!r} at seed {spec.seed or 0} has not been trained under these settings (no artefact of "
            f"{', '.join(lacking)}): there is nothing to draw. Run 'kdzoo bench {bench}' with the same --set first, "
            "or choose other arms."
        )
    run = open_run(spec, store, folder)
    roles.build(run)
    for model in run.models.values():
        model.eval()
    return run


def _chosen(run: Run, count: int) -> tuple[Tensor, Tensor, list[int]]:
    """Images in [0, 1], labels and rows: of each of `count` parts of the split the image with the most classes."""
    data = run.data("val")
    if not len(data):
        raise KdzooError(
            f"task {run.task.slug!r} has no validation images: there is nothing to draw. Set val_share above 0."
        )
    parts = torch.arange(len(data)).tensor_split(min(count, len(data)))
    rows, images, labels = [], [], []
    for part in parts:
        found = [(data.collate(data.items, row.view(1), None), int(row)) for row in part]
        batch, row = max(found, key=lambda one: len(one[0].labels.unique()))
        image = batch.views["image"][0]
        low, high = image.amin(), image.amax()
        images.append((image - low) / (high - low).clamp(min=1e-6))
        labels.append(batch.labels[0])
        rows.append(row)
    return torch.stack(images), torch.stack(labels), rows


def _classes(run: Run, rows: Sequence[int]) -> Tensor:
    """What the first role that ships says of these rows of the split."""
    wanted, found, first = set(rows), {}, 0
    for logits, batch in predictions(run, run.ships[0], "val"):
        for place in range(len(batch.ids)):
            if first + place in wanted:
                found[first + place] = logits[place].argmax(0).cpu()
        first += len(batch.ids)
    return torch.stack([found[row] for row in rows])


def sheet(images: Tensor, labels: Tensor, said: Mapping[str, Tensor], info: Mapping[str, Any]) -> Image.Image:
    """The picture.

    Args:
        images: (N, 1 or 3, H, W) in [0, 1].
        labels: (N, H, W) int64.
        said: arm -> (N, H, W) int64.
        info: classes and palette.
    """
    palette = torch.tensor(info["palette"], dtype=torch.uint8)
    tall = round(TILE * images.shape[2] / images.shape[3])
    columns = ["image", "truth", *said]
    width = len(columns) * (TILE + GAP) + GAP
    line = 2 * tall + 2 * GAP
    canvas = Image.new("RGB", (width, HEAD + len(images) * line + LEGEND), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for column, name in enumerate(columns):
        pen.text((GAP + column * (TILE + GAP), 3), name, INK, font)
    for row, (image, truth) in enumerate(zip(images, labels, strict=True)):
        top = HEAD + row * line
        grey = (image.expand(3, -1, -1).permute(1, 2, 0) * 255).byte()
        upper = [
            grey,
            coloured(truth, palette),
            *(coloured(classes[row], palette) for classes in said.values()),
        ]
        for column, tile in enumerate(upper):
            _put(canvas, tile, column, top, tall)
        for column, classes in enumerate(said.values(), 2):
            _put(canvas, errors(classes[row], truth), column, top + tall + GAP // 2, tall)
    _legend(pen, font, info, canvas.size)
    return canvas


def coloured(labels: Tensor, palette: Tensor) -> Tensor:
    """(H, W, 3) uint8; grey where a label is no class."""
    known = labels < len(palette)
    return palette[labels.where(known, 0)].where(
        known.unsqueeze(2), torch.tensor(UNCOUNTED, dtype=torch.uint8)
    )


def errors(classes: Tensor, truth: Tensor) -> Tensor:
    """(H, W, 3) uint8: red where the class is wrong, grey where nothing counts, else white."""
    colours = torch.tensor([PAPER, WRONG, UNCOUNTED], dtype=torch.uint8)
    return colours[(classes != truth).long().masked_fill(truth == IGNORE, 2)]


def _put(canvas: Image.Image, tile: Tensor, column: int, top: int, tall: int) -> None:
    picture = Image.fromarray(tile.contiguous().numpy()).resize((TILE, tall), Image.Resampling.NEAREST)
    canvas.paste(picture, (GAP + column * (TILE + GAP), top))


def _legend(pen: ImageDraw.ImageDraw, font: Any, info: Mapping[str, Any], size: tuple[int, int]) -> None:
    """Colours and names of the classes, as many as fit, and what red means."""
    left, top = GAP, size[1] - LEGEND + 4
    for name, colour in [("wrong", WRONG), *zip(info["classes"], map(tuple, info["palette"]), strict=True)]:
        wide = 16 + int(pen.textlength(name, font)) + 10
        if left + wide > size[0]:
            return
        pen.rectangle((left, top + 1, left + 11, top + 12), colour, INK)
        pen.text((left + 16, top), name, INK, font)
        left += wide
