"""TransKD: losses, fusion, mixer and assistant, against RuipingL/TransKD."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor, nn

from kdzoo.losses.maps import hierarchical_context_loss
from kdzoo_segmentation.fusion import CrossSelectiveFusion
from kdzoo_segmentation.methods.transkd import (
    EmbeddingAlignment,
    EmbeddingAssistant,
    Mixer,
    embedding_loss,
    feature_loss,
)

STAGES = (1, 2, 3, 4)
WEIGHTS = (0.1, 0.1, 0.5, 1.0)  # of the embeddings, as the case says at its output `pea`
FUSION = {  # names there -> ours
    "conv1_0": "enter.0",
    "conv1_1": "enter.1",
    "conv2_0": "leave.0",
    "conv2_1": "leave.1",
    "fc_0": "squeeze.0",
    "fc_1": "squeeze.1",
    "fc1_0": "squeeze_alone.0",
    "fcs_0": "branches.0",
    "fcs_1": "branches.1",
}
HEADS = 2  # of the mixer; the last stage has one position, so their number plays no part


def fill(module: nn.Module, case: Case, names: dict[str, str]) -> None:
    """Give a module, then in evaluation mode, the case's tensors called by these names."""
    state = {
        f"{ours}.{kind}": case.params[f"{theirs}_{kind}"]
        for theirs, ours in names.items()
        for kind in ("weight", "bias", "running_mean", "running_var")
        if f"{theirs}_{kind}" in case.params
    }
    counters = {name for name in module.state_dict() if name.endswith("num_batches_tracked")}
    module.load_state_dict(state | {name: torch.tensor(0) for name in counters})
    module.eval()


def embeddings(case: Case) -> list[Tensor]:
    return [case.leaf(f"embed{stage}") for stage in STAGES]


def maps(case: Case) -> list[Tensor]:
    return [case.leaf(f"feat{stage}") for stage in STAGES]


def aligned(case: Case, embedded: list[Tensor]) -> list[Tensor]:
    module = EmbeddingAlignment(case.args["student_channels"], case.args["teacher_channels"])
    fill(module, case, {f"embed{stage}_linearproject": f"stages.{stage - 1}" for stage in STAGES})
    found: list[Tensor] = module(embedded)
    return found


def compared(case: Case, projected: list[Tensor]) -> dict[str, Tensor]:
    """All outputs of a case: the fused maps, the projected embeddings and what they cost."""
    fusion = CrossSelectiveFusion(
        case.args["student_channels"], case.args["teacher_channels"], case.args["mid"]
    )
    names = {  # there the deepest stage comes first
        f"skfs_{4 - stage}_{theirs}": f"stages.{stage - 1}.{ours}"
        for stage in STAGES
        for theirs, ours in FUSION.items()
    }
    fill(fusion, case, names)
    fused = fusion(maps(case))
    hcl = torch.stack(
        [
            feature_loss(map_, case.inputs[f"t_feat{stage}"], kind="hcl", temperature=1.0).mean()
            for stage, map_ in zip(STAGES, fused, strict=True)
        ]
    ).sum()
    pea = embedding_loss(projected, [case.inputs[f"t_embed{stage}"] for stage in STAGES], WEIGHTS).mean()
    outputs = {f"fused{stage}": map_ for stage, map_ in zip(STAGES, fused, strict=True)}
    outputs |= {f"proj{stage}": part for stage, part in zip(STAGES, projected, strict=True)}
    return case.with_gradients(**outputs, hcl=hcl, pea=pea, loss=hcl + pea)


@parity("transkd", "hcl")
def hcl(case: Case) -> dict[str, Tensor]:
    losses = [
        hierarchical_context_loss(
            case.leaf(f"student{stage}"), case.inputs[f"teacher{stage}"], reduction="mean"
        )
        for stage in (1, 2)
    ]
    return case.with_gradients(loss=torch.stack(losses).sum())


@parity("transkd", "cwd")
def cwd(case: Case) -> dict[str, Tensor]:
    values = feature_loss(
        case.leaf("student"), case.inputs["teacher"], kind="cwd", temperature=case.args["temperature"]
    )
    return case.with_gradients(loss=values.mean())


@parity("transkd", "skf-base")
def base(case: Case) -> dict[str, Tensor]:
    return compared(case, aligned(case, embeddings(case)))


@parity("transkd", "skf-gl")
def gl(case: Case) -> dict[str, Tensor]:
    mixer = Mixer(case.args["student_channels"][-1], HEADS, residual=case.args["gl_residual"])
    mixer.load_state_dict(
        {
            "attention_weight": case.params["atten_weight"],
            "local_weight": case.params["conv_weight"],
            "qkv.weight": case.params["attn4_qkv_weight"],
            **{f"out.{kind}": case.params[f"attn4_proj_{kind}"] for kind in ("weight", "bias")},
            **{f"conv.{kind}": case.params[f"conv1_{kind}"] for kind in ("weight", "bias")},
            **{f"gate.{kind}": case.params[f"conv2_{kind}"] for kind in ("weight", "bias")},
        }
    )
    *first, last = embeddings(case)
    return compared(case, aligned(case, [*first, mixer(last)]))


@parity("transkd", "skf-ea")
def ea(case: Case) -> dict[str, Tensor]:
    image = case.inputs["image"]
    assistant = EmbeddingAssistant(
        image.shape[1], case.args["student_channels"], case.args["teacher_channels"]
    )
    state = {
        f"stages.{stage - 1}.{part}.{kind}": case.params[f"patch_embed{stage}_{part}_{kind}"]
        for stage in STAGES
        for part in ("proj", "norm")
        for kind in ("weight", "bias")
    }
    shares = torch.cat([case.params[f"fuse_weights_{place}"] for place in range(8)])
    assistant.load_state_dict(state | {"own": shares[:4], "assisted": shares[4:]})
    return compared(case, assistant(aligned(case, embeddings(case)), image, maps(case)[:-1]))
