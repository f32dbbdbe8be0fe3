"""Does Knowledge Distillation Really Work?, against samuelstanton/gnosis."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo import metrics
from kdzoo.cka import kernel_cka, linear_cka
from kdzoo.losses.fidelity import falling_share
from kdzoo_vision.methods.kd_fidelity import combined, distillation_loss
from kdzoo_vision.starts import interpolated


def loss_of(case: Case, loss: str, hard_share: float = 0.0) -> Tensor:
    teacher = case.inputs["teacher_logits"]
    return distillation_loss(
        case.leaf("student_logits"),
        teacher if teacher.dim() == 2 else combined(teacher),
        teacher if teacher.dim() == 3 else teacher.unsqueeze(1),
        loss=loss,
        temperature=case.args["tau"],
        corruption=0.0,
        hard_share=hard_share,
        generator=None,
        reduction="mean",
    )


TARGETS = {
    "kl": "kl",
    "symkl": "symmetric-kl",
    "averaged-symkl": "averaged-symmetric-kl",
    "brier": "brier",
    "fwd-ce": "soft",
    "rev-ce": "reverse",
    "hard-ce": "hard",
}

for _target, _loss in TARGETS.items():

    @parity("kd-fidelity", _target)
    def variant(case: Case, loss: str = _loss) -> dict[str, Tensor]:
        return case.with_gradients(loss=loss_of(case, loss))


@parity("kd-fidelity", "convex-ce")
def convex(case: Case) -> dict[str, Tensor]:
    beta = falling_share(case.args["beta0"], step=case.args["steps"], steps=case.args["T_max"])
    return case.with_gradients(loss=loss_of(case, "mixed", hard_share=beta), beta=torch.tensor(beta))


@parity("kd-fidelity", "student-loss")
def student_loss(case: Case) -> dict[str, Tensor]:
    alpha = case.args["alpha"]
    hard = F.cross_entropy(case.leaf("student_logits")[: len(case.inputs["targets"])], case.inputs["targets"])
    return case.with_gradients(loss=alpha * hard + (1 - alpha) * loss_of(case, "soft"))


@parity("kd-fidelity", "reduce-ensemble")
def reduce_ensemble(case: Case) -> dict[str, Tensor]:
    return {"logp": combined(case.inputs["teacher_logits"])}


@parity("kd-fidelity", "agreement-ece")
def agreement_ece(case: Case) -> dict[str, Tensor]:
    logits, labels, bins = case.inputs["logits"], case.inputs["targets"], case.args["num_bins"]
    found = metrics.calibration_bins(logits, labels, axis=1, bins=bins)
    return {
        "agreement": metrics.agreement(logits, case.inputs["logits_2"], axis=1, reduction="mean"),
        "ece": metrics.expected_calibration_error(logits, labels, axis=1, bins=bins),
        "bin_count": found.items.float(),
        "bin_correct": found.hits.float(),
        "bin_prob": found.confidence,
    }


@parity("kd-fidelity", "cka")
def cka(case: Case) -> dict[str, Tensor]:
    x, y = case.inputs["x"], case.inputs["y"]
    return {"linear_cka": linear_cka(x, y), "kernel_cka": kernel_cka(x, y)}


@parity("kd-fidelity", "interpolate-net")
def interpolate_net(case: Case) -> dict[str, Tensor]:
    """The recorded net and checkpoint have seen one batch each, so their counters are 1."""
    states = [
        {
            name.removeprefix(f"{side}_").replace("_", ".", 1): value
            for name, value in case.params.items()
            if name.startswith(side)
        }
        | {"1.num_batches_tracked": torch.tensor(1)}
        for side in ("net", "ckpt")
    ]
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    net.load_state_dict(interpolated(*states, random_share=case.args["distance_ratio"]))
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return {
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
        "logits": net.eval()(case.inputs["batch1"]),
    }
