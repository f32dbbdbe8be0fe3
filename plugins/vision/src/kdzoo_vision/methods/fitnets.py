"""FitNets: Hints for Thin Deep Nets (Romero et al., ICLR 2015, arXiv:1412.6550); card: fitnets.

Here: both stages in one run of the loop. For the first `hint_share` of the steps only the hint loss acts, on the
student's guided layer through a regressor (stage 1); then the task's loss, with soft labels where there are logits
(stage 2). Not here: the paper's maxout nets.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.features import hint_regression
from kdzoo.method import Batch, Term

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """The regressor r: a convolution from the student's channels to the teacher's, 1x1 unless set otherwise."""
    if role != "regressor":
        return None
    s_channels, t_channels = (_channels(run, side) for side in ("student", "teacher"))
    kernel = int(run.cfg.regressor_kernel)
    return nn.Conv2d(s_channels, t_channels, kernel, padding=kernel // 2)


def _channels(run: Run, role: str) -> int:
    """Channels of the guided (hint) layer, seen by one forward pass of a blank image."""
    name, sizes = run.cfg.guided if role == "student" else run.cfg.hint, run.task.sizes
    side = int(run.cfg.get("image_size", sizes["side"]))
    module = run.models[role]
    modes = module.training
    blank = torch.zeros(1, sizes["channels"], side, side, device=run.device)
    with torch.no_grad():
        features = module.eval()(blank).features
    module.train(modes)
    if name not in features or features[name].dim() != 4:
        maps = ", ".join(key for key, value in features.items() if value.dim() == 4)
        raise KdzooError(
            f"{role} has no feature map {name!r} to hint at; its maps are {maps}. Set guided and hint."
        )
    return features[name].shape[1]


@hookimpl(wrapper=True)
def loss_terms(run: Run, batch: Batch) -> Generator[None, list[dict[str, Term]], list[dict[str, Term]]]:
    """Stage 1: only the mean squared error of the regressed guided layer to the hint. Stage 2: the task, soft labels.

    A wrapper, since stage 1 must silence the task's own term.
    """
    others = yield
    cfg = run.cfg
    student, teacher = run.out("student"), run.signal("teacher")
    if run.step < cfg.hint_share * run.steps:
        regressed, hint = run.models["regressor"](student.features[cfg.guided]), teacher.features[cfg.hint]
        if regressed.shape[2:] != hint.shape[2:]:
            regressed = F.adaptive_avg_pool2d(regressed, (hint.shape[2], hint.shape[3]))
        return [
            {"hint": Term(hint_regression(regressed, hint, reduction="sum"), cfg.hint_weight, per="item")}
        ]
    if not cfg.kd_weight or student.logits is None or teacher.logits is None:
        return others
    total = kl_divergence(
        student.logits, teacher.logits, temperature=cfg.temperature, axis=1, reduction="sum"
    )
    return [*others, {"kd": Term(total, cfg.kd_weight * cfg.temperature**2, per="item")}]
