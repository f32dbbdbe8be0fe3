"""MOKD's heads, losses and schedule, against skyoux/mokd."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor

from kdzoo.losses.divergences import soft_cross_entropy
from kdzoo.losses.multicrop import dino_loss, moved_center
from kdzoo_vision.ssl.heads import MlpHead, TokenHead
from kdzoo_vision.ssl.schedules import cosine


@parity("mokd", "dino-head")
def dino_head(case: Case) -> dict[str, Tensor]:
    given = case.params
    bottleneck, hidden = given["fc3_weight"].shape
    outputs, inputs = given["last_g"].shape[0], given["fc1_weight"].shape[1]
    head = MlpHead(
        inputs, outputs, hidden=hidden, bottleneck=bottleneck, learn_length=not case.args["norm_last_layer"]
    )
    state = {"last_layer.length": given["last_g"], "last_layer.direction": given["last_v"]}
    for place, layer in enumerate(("fc1", "fc2", "fc3")):
        state |= {f"mlp.{2 * place}.{part}": given[f"{layer}_{part}"] for part in ("weight", "bias")}
    head.load_state_dict(state)
    assert head.last_layer.length.requires_grad is not case.args["norm_last_layer"]
    return {"out": head(case.inputs["x"]).detach()}


@parity("mokd", "dino-loss")
def loss(case: Case) -> dict[str, Tensor]:
    args, teacher = case.args, case.leaf("teacher_out")
    center = case.inputs["center"].squeeze(0)
    value = dino_loss(
        case.leaf("student_out"),
        teacher,
        center,
        crops=args["ncrops"],
        student_temperature=args["student_temp"],
        teacher_temperature=args["teacher_temp_used"],
        reduction="mean",
    )
    moved = moved_center(center, teacher.detach().sum(0), len(teacher), args["center_momentum"])
    found = case.with_gradients(loss=value)
    return {**found, "new_center": moved.unsqueeze(0)}


@parity("mokd", "search-loss")
def search_loss(case: Case) -> dict[str, Tensor]:
    value = soft_cross_entropy(
        case.leaf("student"),
        case.inputs["teacher"],
        temperature=(case.args["student_temp"], case.args["teacher_temp_used"]),
        axis=-1,
        reduction="mean",
    )
    return case.with_gradients(loss=value)


def t_head(case: Case, channels: int | None) -> TokenHead:
    given, args = case.params, case.args
    head = TokenHead(
        args["embed_dim"],
        len(given["last_g"]),
        side=args["featuremap_size"],
        channels=channels,
        depth=args["depth"],
        heads=args["heads"],
        mlp_ratio=given["block0_fc1_weight"].shape[0] / args["embed_dim"],
    )
    places = {"norm1": "norm1", "norm2": "norm2", "qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1"}
    places["fc2"] = "mlp.fc2"
    state = {
        "positions": given["pos_embed"],
        "last_layer.length": given["last_g"],
        "last_layer.direction": given["last_v"],
    }
    for part in ("weight", "bias"):
        state[f"norm.{part}"] = given[f"norm_{part}"]
        if channels:
            state[f"reduce.{part}"] = given[f"reduce_{part}"]
        for block in range(args["depth"]):
            for theirs, ours in places.items():
                state[f"blocks.{block}.{ours}.{part}"] = given[f"block{block}_{theirs}_{part}"]
    head.load_state_dict(state)
    assert head.norm.eps == args["layer_norm_eps"]
    return head


@parity("mokd", "t-head-cnn")
def t_head_cnn(case: Case) -> dict[str, Tensor]:
    head = t_head(case, case.inputs["x"].shape[1])
    with torch.no_grad():
        tokens = head.tokens(case.inputs["x"])
        return {"out": head(tokens), "pooled": tokens.mean(1)}


@parity("mokd", "t-head-vit")
def t_head_vit(case: Case) -> dict[str, Tensor]:
    head = t_head(case, None)
    with torch.no_grad():
        return {"out": head(head.tokens(case.inputs["x"]))}


@parity("mokd", "cosine-scheduler")
def cosine_scheduler(case: Case) -> dict[str, Tensor]:
    args = case.args
    steps = args["epochs"] * args["niter_per_ep"]
    values = [cosine(args["base_value"], args["final_value"], step, steps) for step in range(steps)]
    like = case.expected["schedule"]
    return {"schedule": torch.tensor(values, dtype=like.dtype)}
