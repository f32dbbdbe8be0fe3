"""The crops of a run, from its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo_vision.data.multicrop import Crops

if TYPE_CHECKING:
    from kdzoo.runs import Run


def crops_of(run: Run) -> Crops:
    """Sizes and areas as the settings say."""
    cfg = run.cfg
    return Crops(
        large_size=int(cfg.image_size),
        small_size=int(cfg.small_size),
        small=int(cfg.small_crops),
        large_area=(float(cfg.large_low), 1.0),
        small_area=(float(cfg.small_low), float(cfg.small_high)),
    )
