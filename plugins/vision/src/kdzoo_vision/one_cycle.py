"""The recipe of multi-label classification on photos: Adam, one cycle of the rate, no decay on biases and norms.

penghui-yang/L2D@ea7fa55, after Ridnik et al. 2021 (arXiv:2009.14119): OneCycleLR stepped each iteration, weight decay
on matrices and convolutions alone. Not here: torch's default of cycling Adam's first beta along.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kdzoo.runs import Run

START, END = (
    25.0,
    1e4,
)  # of torch's OneCycleLR: the rate starts at a 25th of its peak and ends at a 1e-4th of that


def make_optimizer(run: Run) -> torch.optim.Optimizer:
    """Adam over all trained roles at the step the run is at; for `Run.make_optimizer`."""
    cfg = run.cfg
    groups = []
    for name, role in run.roles.items():
        if role.kind != "train":
            continue
        trained = [p for p in run.models[name].parameters() if p.requires_grad]
        for decayed in (True, False):
            part = [p for p in trained if (p.dim() > 1) == decayed]
            if part:
                decay = float(cfg.weight_decay) if decayed else 0.0
                groups.append({"params": part, "role": name, "weight_decay": decay})
    optimizer = torch.optim.Adam(groups, lr=float(cfg.lr), fused=True)
    if run.restored is not None and run.restored["optimizer"] is not None:
        optimizer.load_state_dict(run.restored["optimizer"])
    run.rate = partial(one_cycle, peak=float(cfg.lr), share=float(cfg.cycle_share), steps=schedule_steps(run))
    for group in optimizer.param_groups:
        group["lr"] = run.rate(run.step)
    return optimizer


def schedule_steps(run: Run) -> int:
    """Length of the cycle: the run's, or `cycle_steps` where the run is to stop inside it, as the teacher's does."""
    return max(run.steps, int(run.cfg.get("cycle_steps", 0)))


def one_cycle(step: int, *, peak: float, share: float, steps: int) -> float:
    """The rate of a step: a cosine from peak / 25 up to the peak, then one down to peak / 25 / 10,000.

    Args:
        step: from 0 to steps - 1; later ones get the last rate.
        peak: the highest rate.
        share: where the peak lies, as a share of all steps.
        steps: length of the cycle.

    Source: torch.optim.lr_scheduler.OneCycleLR, whose numbers these are.
    """
    top, last = share * steps - 1, steps - 1
    if step <= top:
        low, part = peak / START, step / top if top > 0 else 1.0
        return low + (peak - low) * (1 - math.cos(math.pi * part)) / 2
    end = peak / START / END
    part = min(1.0, (step - top) / (last - top)) if last > top else 1.0
    return end + (peak - end) * (1 + math.cos(math.pi * part)) / 2
