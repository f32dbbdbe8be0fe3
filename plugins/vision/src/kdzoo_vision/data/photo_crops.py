"""Training batches of photos in several crops, without labels: what tasks of self-supervised learning draw from files.

Shapes: B images, V crops of an image, S pixels a side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kdzoo.method import Batch
from kdzoo.rng import uniforms
from kdzoo.task import Data
from kdzoo_vision.data.multicrop import PHOTO_DRAWS, Crops, photo_crop
from kdzoo_vision.data.photos import Collate, Files


@dataclass(frozen=True, slots=True)
class CropCollate:
    """`collate(items, rows, seeds) -> Batch`; a plain object, so that loader processes can receive it.

    With seeds: views "large" (2 B, 3, S, S) and "small" (L B, 3, s, s), crop by crop; labels all -1. Without seeds:
    what `plain` makes of the images, one view and their labels.
    """

    plain: Collate
    crops: Crops

    def __call__(self, items: Files, rows: Tensor, seeds: Tensor | None) -> Batch:
        if seeds is None:
            return self.plain(items, rows, None)
        places, crops = rows.tolist(), self.crops
        drawn = uniforms(seeds, crops.count * PHOTO_DRAWS).reshape(len(places), crops.count, PHOTO_DRAWS)
        made = [
            np.empty((crops.count, len(places), size, size, 3), dtype=np.uint8)[part]
            for size, part in ((crops.large_size, slice(0, 2)), (crops.small_size, slice(2, None)))
        ]

        def fill(k: int) -> None:
            image = items.image(places[k])  # decoded once for all of its crops
            for crop in range(crops.count):
                pixels = photo_crop(image, crop, drawn[k, crop].tolist(), crops)
                made[crop >= 2][crop if crop < 2 else crop - 2, k] = pixels

        if self.plain.decoders > 1 and len(places) > 1:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(min(self.plain.decoders, len(places))) as pool:
                for _ in pool.map(fill, range(len(places))):
                    pass
        else:
            for k in range(len(places)):
                fill(k)
        large, small = (self.plain.recipe.normalized(torch.from_numpy(part).flatten(0, 1)) for part in made)
        return Batch(
            ids=[items.paths[row] for row in places],
            views={"large": large, "small": small},
            labels=torch.full((len(places),), -1),
            counts={"item": len(places), "label": 0},
        )


def cropped(data: Data, crops: Crops) -> Data:
    """The split, with its training batches in crops and without labels."""
    assert isinstance(data.collate, Collate)
    return replace(data, collate=CropCollate(data.collate, crops))
