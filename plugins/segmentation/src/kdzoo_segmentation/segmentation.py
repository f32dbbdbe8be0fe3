"""What all segmentation tasks share: models by name, pixel cross-entropy, and the metrics of label maps.

A task's module imports these hooks, adds `data` and says its classes:

    METAINFO = {"classes": ("road", ...), "palette": [[128, 64, 128], ...]}      as mmseg's data sets do

Shapes: B images, C classes, H x W pixels. Labels are class numbers, or 255 where nothing counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdzoo.cards import Side, TaskCard
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Metric, Output, Term
from kdzoo.runs import as_output
from kdzoo_segmentation import models
from kdzoo_segmentation.inference import slide
from kdzoo_segmentation.measures import IGNORE, Areas, Borders, Calibration, band

if TYPE_CHECKING:
    from kdzoo.runs import Run

AUXILIARY = 0.4  # weight of an auxiliary head's loss: mmseg configs/_base_/models/pspnet_r50-d8.py
WIDTHS = (1, 2, 4)  # of the trimaps, pixels


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """Student and teacher by the names in the settings."""
    if role not in ("student", "teacher"):
        return None
    if role == "teacher" and run.stage == "teacher" and not run.steps:
        raise KdzooError(
            f"the teacher {run.cfg.teacher!r} has teacher_steps = 0: it would teach random numbers. Set teacher_steps "
            "to the length of its training, or teacher_weights to a file of trained weights."
        )
    return models.build(run.cfg[role], classes=run.task.sizes["classes"], channels=run.task.sizes["channels"])


def check_pair(task: TaskCard, cfg: Mapping[str, Any]) -> dict[str, Side]:
    """Layers of both nets, before any weights are loaded."""
    size = (task.sizes["classes"], task.sizes["channels"], task.sizes["height"], task.sizes["width"])
    return {role: models.side(cfg[role], *size) for role in ("student", "teacher")}


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Cross-entropy summed over the labelled pixels (nats), the auxiliary heads' at 0.4 of it."""
    if batch.norm is not None and not batch.norm.get("pixel", 1):
        raise KdzooError(
            f"step {run.step} has no pixel with a label (all are {IGNORE}): the labels would teach nothing. Check that "
            "the masks are the data set's label maps and not its contours, take larger crops, or set task_weight to 0 "
            "to train on the teacher alone."
        )
    output = run.out("student")
    assert output.logits is not None
    return {"task": Term(cross_entropy(output, batch.labels), per="pixel")}


def cross_entropy(
    output: Output, labels: Tensor, auxiliary: float = AUXILIARY, weight: Tensor | None = None
) -> Tensor:
    """The sum over labelled pixels of the main head's cross-entropy and `auxiliary` times each auxiliary head's.

    With `weight` (C,), a pixel's is multiplied by the weight of its class.
    """
    assert output.logits is not None
    check_labels(labels, output.logits)
    total = F.cross_entropy(output.logits, labels, weight, ignore_index=IGNORE, reduction="sum")
    for score in output.extra.get("auxiliary", []) if auxiliary else []:
        resized = models.resized(score, labels)
        said = F.cross_entropy(resized, labels, weight, ignore_index=IGNORE, reduction="sum")
        total = total + auxiliary * said
    return total


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Refuse masks of another size, and classes that the model has not.

    Raises:
        KdzooError: so.
    """
    if labels.shape[1:] != logits.shape[2:]:
        raise KdzooError(
            f"labels are {tuple(labels.shape[1:])} pixels and the image {tuple(logits.shape[2:])}: classes would be "
            "held against the wrong places. Crop and resize both alike, the labels by nearest neighbour."
        )
    counted = labels[labels != IGNORE]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < logits.shape[1]:
        raise KdzooError(
            f"labels hold the classes {int(counted.min())} to {int(counted.max())}, expected 0 to "
            f"{logits.shape[1] - 1}, or 255 to be ignored: the loss would read outside of the scores. Map the data "
            "set's ids to the task's classes, or set the number of classes right."
        )


def mean_over_counted(values: Tensor, keep: Tensor) -> Tensor:
    """Mean of (B, H, W) values over the pixels that count; 0, and no gradient, where none does."""
    return (values * keep).sum() / keep.sum().clamp(min=1)


def predictions(
    run: Run, role: str, split: str, batch: int = 0, before: Callable[[Batch], None] | None = None
) -> Iterator[tuple[Tensor, Batch]]:
    """Scores (B, C, H, W) and batch, over a split in order, in evaluation mode and without augmentation.

    `batch` 0 is the setting `eval_batch`, or 16 where the task has none. `before` may change a batch: a model that
    sees more than the image.
    """
    data, module = run.data(split), run.models[role]
    batch = batch or int(run.cfg.get("eval_batch", 16))
    for first in range(0, len(data), batch):
        rows = torch.arange(first, min(first + batch, len(data)))
        part = run.to_device(data.collate(data.items, rows, None))
        if before is not None:
            before(part)
        logits = scored(run, module, part)
        assert logits is not None
        check_labels(part.labels, logits)
        yield logits.float(), part


def scored(run: Run, module: nn.Module, batch: Batch) -> Tensor | None:
    """What a model says of a batch in evaluation, (B, C, H, W): as it is, unless the task has settings of inference.

    `eval_mode` "whole" shows the whole image, "slide" windows of the training crop (`inference.slide`); the scores are
    then resized to the labels, as mmseg does; with a `label_stride` above 1 the head's own, not the enlarged ones.
    """
    cfg, image = run.cfg, batch.views["image"]
    with torch.no_grad(), run.device_info.autocast():
        if cfg.get("eval_mode", "whole") == "slide":
            crop = tuple(int(side) for side in cfg.crop)
            logits: Tensor | None = slide(module, image, (crop[0], crop[1]), float(cfg.slide_stride))
        else:
            output = as_output(module(image))
            logits = output.logits
            if int(cfg.get("label_stride", 1)) > 1:
                logits = output.features["score"]
        if logits is not None and cfg.get("eval_mode") is not None:
            logits = models.resized(logits.float(), batch.labels)
    return logits


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """Mean IoU, pixel and mean class accuracy; in the last stage all else that the task's card names.

    `miou[edgeK]` counts only the pixels within K pixels of another class, `miou[interior2]` all others; a subset that
    is named in the task module's SUBSETS is a mean over its classes.
    """
    found: dict[str, Metric] = {}
    last = run.stage == "evaluate"
    teacher = run.models.get("teacher") if last else None
    for role, suffix in run.shipped():
        score = Scores(run.task.sizes["classes"], run.task.sizes["boundary"], last)
        for logits, part in predictions(run, role, split, int(run.cfg.get("eval_batch", 16))):
            score.add(logits, part.labels)
            if teacher is not None and teacher is not run.models[role]:
                taught = scored(run, teacher, part)
                assert taught is not None
                if taught.shape == logits.shape:
                    score.compare(logits, taught.float(), part.labels)
        size = len(run.data(split))
        for name, value in score.values().items():
            found[f"{name}{suffix}"] = Metric(value, size)
        if last:
            found |= _of_classes(run, score.whole, suffix, size)
    return found


def _of_classes(run: Run, whole: Areas, suffix: str, size: int) -> dict[str, Metric]:
    """IoU of each class, and the mean over each named subset of them."""
    from kdzoo import catalog

    module = catalog.load().module(run.task.slug)
    names, found = module.METAINFO["classes"], {}
    # With a hundred classes and more, a record would be a list of them: their cards leave it out.
    listed = zip(names, whole.iou.tolist(), strict=True) if "iou" in run.task.metrics else ()
    for name, value in listed:
        found[f"iou[{name}]{suffix}"] = Metric(None if value != value else value, size)
    for name, members in getattr(module, "SUBSETS", {}).items():
        places = [names.index(member) for member in members]
        found[f"miou[{name}]{suffix}"] = Metric(whole.mean_iou(places), size)
    return found


class Scores:
    """All sums over a split. With `last` false only what validation during training shows.

    Args:
        classes: C.
        boundary: width for boundary IoU, pixels.
    """

    def __init__(self, classes: int, boundary: int, last: bool) -> None:
        self.last, self.whole, self.borders = last, Areas(classes), Borders(classes, boundary)
        self.near = {width: Areas(classes) for width in WIDTHS}
        self.interior, self.calibration = Areas(classes), Calibration()
        self.entropy = {"edge2": Mean(), "interior2": Mean()}
        self.nll, self.agreement, self.apart = Mean(), Mean(), Mean()

    def add(self, logits: Tensor, truth: Tensor) -> None:
        """Scores (B, C, H, W) against labels (B, H, W)."""
        predicted = logits.argmax(1)
        self.whole.add(predicted, truth)
        if not self.last:
            return
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        for width, areas in self.near.items():
            areas.add(predicted, truth.masked_fill(~band(truth, width), IGNORE))
        edge, counted = band(truth, 2), truth != IGNORE
        self.interior.add(predicted, truth.masked_fill(edge, IGNORE))
        entropy = -(p * log_p).sum(1)
        self.entropy["edge2"].add(entropy[edge])
        self.entropy["interior2"].add(entropy[counted & ~edge])
        self.borders.add(predicted, truth)
        self.calibration.add(p, truth)
        self.nll.add(F.nll_loss(log_p, truth, ignore_index=IGNORE, reduction="none")[counted])

    def compare(self, logits: Tensor, taught: Tensor, truth: Tensor) -> None:
        """How far a student follows its teacher, on the pixels that count."""
        counted = truth != IGNORE
        self.agreement.add((logits.argmax(1) == taught.argmax(1))[counted].float())
        apart = kl_divergence(logits, taught, temperature=1.0, axis=1, reduction="none")
        self.apart.add(apart[counted])

    def values(self) -> dict[str, float | None]:
        """Every metric by its name."""
        found = {
            "miou": self.whole.mean_iou(),
            "pixel_accuracy": self.whole.pixel_accuracy,
            "mean_accuracy": self.whole.mean_accuracy,
        }
        if self.last:
            found |= {f"miou[edge{width}]": areas.mean_iou() for width, areas in self.near.items()}
            found |= {f"entropy[{name}]": mean.value for name, mean in self.entropy.items()}
            found |= {
                "miou[interior2]": self.interior.mean_iou(),
                "boundary_iou": self.borders.mean_iou,
                "ece": self.calibration.error,
                "nll": self.nll.value,
            }
            if self.agreement.count:
                found |= {"agreement": self.agreement.value, "teacher_kl": self.apart.value}
        return found


class Mean:
    """A mean over values that come in parts; None without any."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        self.total += float(values.double().sum())
        self.count += values.numel()

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None
