"""Cumulative Spatial Knowledge Distillation, against Zzzzz1/CSKD."""

from __future__ import annotations

from parity.harness import Case, parity
from torch import Tensor

from kdzoo.losses.dense import pool_logits
from kdzoo.losses.divergences import soft_cross_entropy
from kdzoo_vision.deit import HEADS
from kdzoo_vision.methods.cskd import local_share, spatial_loss, token_loss
from kdzoo_vision.models import build


def dense(case: Case) -> Tensor:
    """The official (B, N, C) patch logits, row-major on 14 x 14, as a map."""
    return case.leaf("student_patch_logits").transpose(1, 2).unflatten(2, (14, 14))


def spatial(case: Case, *, form: str, temperature: float) -> Tensor:
    args, teacher = case.args, case.inputs["teacher_dense"]
    return spatial_loss(
        dense(case),
        teacher,
        teacher.mean((2, 3)),
        share=local_share(args["decay"], args["epoch"], args["max_epoch"]),
        form=form,
        temperature=temperature,
        reduction="mean",
    )


@parity("cskd", "deit-loss")
def deit_loss(case: Case) -> dict[str, Tensor]:
    loss = token_loss(
        case.leaf("student"),
        case.inputs["teacher_global"],
        form=case.args["deit_loss_type"],
        temperature=case.args["deit_tau"],
        reduction="mean",
    )
    return case.with_gradients(loss=loss)


@parity("cskd", "dense-loss")
def dense_loss(case: Case) -> dict[str, Tensor]:
    loss = spatial(case, form=case.args["cskd_loss_type"], temperature=case.args["deit_tau"])
    return case.with_gradients(loss=loss, aligned=pool_logits(dense(case), (7, 7)))


@parity("cskd", "total")
def total(case: Case) -> dict[str, Tensor]:
    args = case.args
    base = soft_cross_entropy(
        case.leaf("cls_logits"),
        case.inputs["labels"].log(),
        temperature=1.0,
        axis=1,
        reduction="mean",
    )
    token = token_loss(
        case.leaf("dist_logits"),
        case.inputs["teacher_dense"].mean((2, 3)),
        form=args["type"],
        temperature=args["T"],
        reduction="mean",
    )
    local = spatial(case, form=args["type"], temperature=args["T"])
    return case.with_gradients(
        loss=(1 - args["alpha"]) * base + args["alpha"] * token + args["gamma"] * local
    )


@parity("cskd", "vit-heads")
def vit_heads(case: Case) -> dict[str, Tensor]:
    args, image = case.args, case.inputs["image"]
    model = build(
        "deit-xs",
        num_classes=5,
        in_channels=3,
        image_size=image.shape[-1],
        dim=8,
        depth=args["depth"],
        heads=args["heads"],
        mlp_ratio=2.0,
        patch=args["patch"],
    )
    net = model.model
    net.load_state_dict({name: case.params[name.replace(".", "_")] for name in net.state_dict()})
    assert len(net.state_dict()) == len(case.params)
    said = model.train()(image).extra
    model.inference = HEADS
    answer = model.eval()(image).logits
    return {
        "cls_logits": said["cls"].detach(),
        "dist_logits": said["dist"].detach(),
        "patch_logits": said["dense"].flatten(2).transpose(1, 2).detach(),
        "eval_logits": answer.detach(),
    }
