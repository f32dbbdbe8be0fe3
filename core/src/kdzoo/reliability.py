"""How confident a model is against how often it is right, bin by bin: what a reliability diagram shows.

Read off the predictions that the evaluate stage has made anyway, and kept among the facts of its artefact. It is no
metric: nothing is compared by it, and an artefact without it (made before it was kept) is as valid as one with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from kdzoo import metrics
from kdzoo.method import EVALUATE

if TYPE_CHECKING:
    from kdzoo.runs import Run

BINS = 15  # as the metric ece, whose terms these are


def reliability(run: Run) -> dict[str, Any]:
    """Role -> ``{"count": [...], "accuracy": [...], "confidence": [...]}`` of every role that ships, on `test`.

    Means over the items of each bin; None in an empty bin. Roles without logits, labels or finite confidences are
    left out; so is everything in a stage that is no evaluation.
    """
    found: dict[str, Any] = {}
    for role in run.ships if run.spec.stage.call == EVALUATE else ():
        for (who, split, _), said in run.predicted.items():
            if (who, split) != (role, "test") or said.logits is None or said.logits.dim() != 2:
                continue
            if not isinstance(said.labels, Tensor) or said.labels.dim() != 1 or not len(said.labels):
                continue
            if said.labels.is_floating_point() or bool(said.logits.isnan().any()):
                continue
            found[role] = _means(metrics.calibration_bins(said.logits, said.labels, axis=1, bins=BINS))
    return found


def _means(bins: metrics.CalibrationBins) -> dict[str, list[Any]]:
    count = bins.items.tolist()
    return {
        "count": count,
        "accuracy": [hits / n if n else None for hits, n in zip(bins.hits.tolist(), count, strict=True)],
        "confidence": [s / n if n else None for s, n in zip(bins.confidence.tolist(), count, strict=True)],
    }
