"""Jaccard Metric Losses, against zifuwanggg/JDTLosses."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor

from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.jaccard import jaccard_loss
from kdzoo_segmentation.boundary_labels import at_border, smoothed
from kdzoo_segmentation.image_wise import ImageAreas
from kdzoo_segmentation.measures import IGNORE

WEIGHTS = {"batch": "mIoUD", "image": "mIoUI", "class": "mIoUC"}
MEASURES = {"IoU": "iou", "Dice": "dice", "Acc": "accuracy"}
OVER = {"D": "dataset", "I": "image", "C": "class"}


@parity("jml", "jdt-loss")
def jdt_loss(case: Case) -> dict[str, Tensor]:
    args, labels = case.args, case.inputs["labels"]
    kind = "hard" if labels.dtype == torch.int64 else "soft"
    total = torch.zeros(())
    for over, name in WEIGHTS.items():
        total = total + args[name] * jaccard_loss(
            case.leaf("logits"),
            labels,
            axis=1,
            form="jml-1",
            over=over,  # type: ignore[arg-type]
            active=args[f"active_{kind}"].lower(),
            reduction="mean",
            alpha=args["alpha"],
            beta=args["beta"],
            smooth=args["smooth"],
            threshold=args["threshold"],
        )
    return case.with_gradients(loss=total)


@parity("jml", "kl")
def kl(case: Case) -> dict[str, Tensor]:
    temperature = case.args["T"]
    value = kl_divergence(
        case.leaf("logits"),
        case.inputs["labels"].log(),
        temperature=(temperature, 1.0),
        axis=1,
        reduction="mean",
    )
    return case.with_gradients(loss=temperature**2 * value)


@parity("jml", "boundary-smoothing")
def boundary_smoothing(case: Case) -> dict[str, Tensor]:
    args = case.args
    labels = case.inputs["labels"].masked_fill(case.inputs["labels"] == args["num_classes"], IGNORE)
    soft = smoothed(labels, classes=args["num_classes"], epsilon=args["epsilon"], side=args["k"])
    return {"boundary": at_border(labels, args["k"]), "soft": soft}


@parity("jml", "accuracy-metric")
def accuracy_metric(case: Case) -> dict[str, Tensor]:
    areas = ImageAreas(case.args["num_classes"])
    areas.add(case.inputs["pred"], case.inputs["gt"])
    rows = torch.stack(areas.rows).sum(0)
    found = {"Acc": float(rows[0].sum() / rows[3].sum())}
    for name, measure in MEASURES.items():
        for letter, over in OVER.items():
            value = areas.mean(measure, over)  # type: ignore[arg-type]
            assert value is not None
            found[f"m{name}{letter}"] = value
    return {name: torch.tensor(100 * value) for name, value in found.items()}
