"""Background adaptation with residual modelling, against ANDYZAQ/BARM."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor
from torch.nn import functional as F

from kdzoo_segmentation.incremental import label_bce
from kdzoo_segmentation.methods.barm import (
    branch_distillation,
    group_distillation,
    pseudo_labels,
    residual_on_background,
    residual_on_new,
    without_old_gradient,
)
from kdzoo_segmentation.models import BN
from kdzoo_segmentation.multihead import Heads, summed_background
from kdzoo_segmentation.scores import at_scores


@parity("barm", "bce-ignore")
def bce_ignore(case: Case) -> dict[str, Tensor]:
    loss = label_bce(case.leaf("logits"), case.inputs["labels"], reduction="mean")
    return case.with_gradients(loss=loss)


def _weights(case: Case) -> dict[str, Tensor]:
    """The release's parameters under our names; the pooled image is a convolution of its own in ours."""
    names = {
        **{f"aspp_convs_{k}": f"aspp.parts.{k}" for k in range(4)},
        "aspp_convs_4": "aspp.whole",
        "aspp_project": "aspp.project",
        "head_pre": "branches.0",
    }
    found = {}
    for theirs, ours in names.items():
        first = 1 if theirs == "aspp_convs_4" else 0  # there its convolution follows the pooling
        found[f"{ours}.conv.weight"] = case.params[f"{theirs}_{first}_weight"]
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{ours}.bn.{part}"] = case.params[f"{theirs}_{first + 1}_{part}"]
    for part in ("weight", "bias"):
        found[f"heads.0.{part}"] = case.params[f"head_0_{part}"]
    return found


@parity("barm", "head")
def head(case: Case) -> dict[str, Tensor]:
    width = case.params["head_pre_0_weight"].shape[0]
    groups = case.args["num_classes"][1:]
    given = case.leaf("out")
    net = Heads(
        given.shape[1], width, (1, *(rate + 1 for rate in case.args["aspp_rates"])), BN, groups
    ).eval()
    for part, rate in zip(list(net.aspp.parts)[1:], case.args["aspp_rates"], strict=True):
        # mmseg makes a convolution of rate 1 a 1x1 one; the case has a 3x3 one of rate 1.
        part.conv.dilation = part.conv.padding = (rate, rate)
    lost = net.load_state_dict(_weights(case), strict=False)
    assert not lost.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in lost.missing_keys)
    _, _, heads = net(given)
    background = summed_background(heads, rule="residual", training=case.args["training_rule"])
    logits = torch.cat([background, *(part[:, 1:] for part in heads)], dim=1)
    loss = (logits * case.inputs["probe"]).sum()
    (bias,) = torch.autograd.grad(loss, [net.heads[0].bias], retain_graph=True)
    return case.with_gradients(loss=loss, logits=logits, head1=heads[0], grad_head1_bias=bias)


@parity("barm", "total-loss")
def total_loss(case: Case) -> dict[str, Tensor]:
    given, args = case.inputs, case.args
    labels = given["labels"]
    logits, previous = (
        F.interpolate(value, labels.shape[-2:], mode="bilinear", align_corners=False)
        for value in (case.leaf("logits"), given["prev_logits"])
    )
    pseudo = pseudo_labels(labels, previous, args["threshold"])
    std = label_bce(without_old_gradient(logits, args["num_classes"][-1]), pseudo, reduction="mean")
    heads, ears = [case.leaf("head1"), case.leaf("head2")], [case.leaf("ear1"), given["ear2"]]
    coarse, residual = at_scores(labels, heads[-1]), heads[-1][:, 0]
    ce = residual_on_new(residual, coarse, reduction="mean")
    tri = residual_on_background(residual, coarse, reduction="mean")
    bfd = branch_distillation(ears, [given["prev_ear1"]], coarse == 0, reduction="mean")
    gkd = group_distillation(heads, [given["prev_head1"]], reduction="mean")
    loss = std + args["co_bg"] * tri + args["co_tn"] * bfd + args["co_p"] * gkd + args["co_oc"] * ce
    found = {"l_std": std, "l_ce": ce, "l_tri": tri, "l_bfd": bfd, "l_gkd": gkd, "pseudo": pseudo}
    return case.with_gradients(loss=loss, **found)
