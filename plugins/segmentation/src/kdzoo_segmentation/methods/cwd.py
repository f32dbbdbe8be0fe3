"""Channel-wise Knowledge Distillation for Dense Prediction (Shu et al., ICCV 2021, arXiv:2011.13256); card: cwd.

On the scores of the head. Not here: the same loss on feature maps behind a 1 x 1 convolution, and the adversarial loss
that the official script may add.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.maps import channel_wise_divergence
from kdzoo.method import Batch, Term
from kdzoo_segmentation.scores import pair_of_scores

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """T^2 KL(teacher || student) of where a class's scores are high, mean over images and classes."""
    cfg = run.cfg
    student, teacher = pair_of_scores(run)
    values = channel_wise_divergence(student, teacher, temperature=cfg.temperature, reduction="none")
    return {"cwd": Term(values.mean(1).sum(), cfg.cwd_weight * cfg.temperature**2, per="item")}
