"""A DeepLabV3 that grows: backbone and ASPP are shared, every step of classes adds a branch and a head.

The first step's branch (`head_pre` in the official code) and those of later steps ("ears") are 3x3 convolutions on the
ASPP feature; a head is a 1x1 convolution with one channel a class of its step and, first, one for the background: its
score in the first head, what a later step adds to it (the residual) in the others. All scores are logits of sigmoids.

Backbones are mmseg's ResNets, ASPP's branches its `ASPPModule`.

Shapes: B images, I input channels, H x W pixels, n_k classes of step k, C = 1 + sum n_k, D features, h x w positions.

    image       (B, I, H, W)
    logits      (B, C, H, W): `score`, bilinearly resized
    features    "stage1" to "stage4"; "aspp", "head" (the newest branch): (B, D, h, w); "score": (B, C, h, w)
    extra       "branches": list of (B, D, h, w); "heads": list of (B, 1 + n_k, h, w), channel 0 the background's
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.errors import unknown
from kdzoo.method import Output
from kdzoo_segmentation.models import SYNC, WIDE, first_convolution, resized, resnet, shortened
from kdzoo_segmentation.openmmlab import MODELS, ASPPModule, ConvModule, in_mmseg

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
RULES = ("residual", "shared")


def _tiny(base: int, channels: int, stages: int = 4) -> dict[str, Any]:
    return {
        "backbone": shortened(resnet(18, base), stages) | {"zero_init_residual": False},  # as models._tiny
        "widths": base << (stages - 1),
        "channels": channels,
        "dilations": (1, 2, 4),
        "stride": 8,
    }


def _full(depth: int, **dilated: Any) -> dict[str, Any]:
    """Output stride 16, as ANDYZAQ/BARM@0a59203 run.sh has it by default."""
    backbone = resnet(depth, norm=SYNC) | {
        "type": "ResNet",
        "strides": (1, 2, 2, 1),
        "dilations": (1, 1, 1, 2),
        "contract_dilation": False,
    }
    return {
        "backbone": backbone,
        "widths": WIDE[depth][-1],
        "channels": 256,
        "dilations": (1, 12, 24, 36),  # ANDYZAQ/BARM@0a59203 network/_deeplab.py
        "stride": 16,
    }


SPECS: dict[str, dict[str, Any]] = {
    # For pictures of about 100 pixels on a CPU.
    "deeplabv3-r18-xxs": _tiny(4, 16),
    "deeplabv3-r18-xs": _tiny(8, 16),
    "deeplabv3-r18-s": _tiny(16, 32),
    "deeplabv3-r18x3-xs": _tiny(8, 16, stages=3),
    "deeplabv3-r18x3-s": _tiny(16, 32, stages=3),
    # The paper's size.
    "deeplabv3-r101": _full(101),
}


def summed_background(heads: Sequence[Tensor], *, rule: str, training: bool, clamp: bool = True) -> Tensor:
    """The background's logit, of the first channels b_1 ... b_t of all heads.

    "residual", t >= 2: while training ``sg(b_1) + sum over 1 < k < t of sg(min(b_k, 0)) + b_t``, sg without gradient;
    else ``b_1 + sum over k >= 2 of min(b_k, 0)``: later steps can only lower it. "shared": b_1.

    Args:
        heads: t tensors (B, 1 + n_k, h, w).
        rule: "residual" or "shared".
        training: which of the two sums.
        clamp: False leaves the residuals unclamped at inference, as an ablation.

    Returns:
        (B, 1, h, w).

    Raises:
        ValueError: an unknown rule.

    Source: ANDYZAQ/BARM@0a59203 network/_deeplab.py:DeepLabHeadBgA.forward.
    """
    if rule not in RULES:
        raise ValueError(f"rule: got {rule!r}, expected one of {', '.join(RULES)}")
    first, *rest = (head[:, :1] for head in heads)
    if rule == "shared" or not rest:
        return first
    if training:
        before = torch.stack([first, *(residual.clamp(max=0) for residual in rest[:-1])]).sum(0)
        return before.detach() + rest[-1]
    return torch.stack([first, *(residual.clamp(max=0) if clamp else residual for residual in rest)]).sum(0)


class Pyramid(nn.Module):
    """ASPP with pooling of the whole image, projected by a 1x1 convolution: (B, in, h, w) to (B, channels, h, w).

    Not mmseg's `ASPPHead`: that projects by 3x3.
    """

    def __init__(
        self, width: int, channels: int, dilations: Sequence[int], norm: dict[str, Any], dropout: float = 0.1
    ) -> None:
        super().__init__()
        act = {"type": "ReLU"}
        self.parts = ASPPModule(tuple(dilations), width, channels, None, norm, act)
        self.whole = ConvModule(width, channels, 1, norm_cfg=norm)
        self.project = ConvModule((len(dilations) + 1) * channels, channels, 1, norm_cfg=norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, map_: Tensor) -> Tensor:
        pooled = self.whole(map_.mean((2, 3), keepdim=True)).expand(-1, -1, *map_.shape[2:])
        projected: Tensor = self.dropout(self.project(torch.cat([*self.parts(map_), pooled], dim=1)))
        return projected


class Heads(nn.Module):
    """ASPP, branches and heads on the backbone's last map: all of the net that a step of classes changes.

    Args:
        width: channels of the map.
        channels: D.
        dilations: of ASPP.
        norm: mmcv's configuration of batch norms.
        groups: n_1 ... n_t.
        ears: False puts all heads on the first branch.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        dilations: Sequence[int],
        norm: dict[str, Any],
        groups: Sequence[int],
        ears: bool = True,
    ) -> None:
        super().__init__()
        self.aspp = Pyramid(width, channels, dilations, norm)
        count = len(groups) if ears else 1
        self.branches = nn.ModuleList(
            ConvModule(channels, channels, 3, padding=1, norm_cfg=norm) for _ in range(count)
        )
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1 + size, 1) for size in groups)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)

    def forward(self, map_: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(ASPP's feature, branches, heads)."""
        feature = self.aspp(map_)
        branches = [branch(feature) for branch in self.branches]
        shown = branches if len(branches) == len(self.heads) else branches * len(self.heads)
        return feature, branches, [head(part) for head, part in zip(self.heads, shown, strict=True)]


class MultiHead(nn.Module):
    """See the module's docstring.

    Attributes:
        groups: n_1 ... n_t.
        num_classes: C.
        rule: "residual" or "shared", of `summed_background`.
        clamp: whether residuals are clamped at inference.
        stride: pixels of a position.
    """

    def __init__(self, backbone: nn.Module, decoder: Heads, groups: Sequence[int], stride: int) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self.groups, self.num_classes, self.stride = tuple(groups), 1 + sum(groups), stride
        self.rule, self.clamp, self.norms_frozen = "residual", True, False

    @property
    def net(self) -> MultiHead:
        """Itself: what reads weights expects the backbone there."""
        return self

    def forward(self, image: Tensor) -> Output:
        stages = self.backbone(image)
        feature, branches, heads = self.decoder(stages[-1])
        background = summed_background(heads, rule=self.rule, training=self.training, clamp=self.clamp)
        score = torch.cat([background, *(head[:, 1:] for head in heads)], dim=1)
        features = {f"stage{k}": stage for k, stage in enumerate(stages, 1)}
        features |= {"aspp": feature, "head": branches[-1], "score": score}
        return Output(resized(score, image), features, extra={"branches": branches, "heads": heads})

    def grid(self, labels: Tensor) -> tuple[int, int]:
        """(h, w) for labels (B, H, W)."""
        return -(-labels.shape[-2] // self.stride), -(-labels.shape[-1] // self.stride)

    def freeze_norms(self) -> None:
        """From now on batch norms keep their statistics, scale and shift.

        Source: ANDYZAQ/BARM@0a59203 network/utils.py:_SimpleSegmentationModel.freeze_bn.
        """
        self.norms_frozen = True
        for part in self._norms():
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> MultiHead:
        super().train(mode)
        if self.norms_frozen:
            for part in self._norms():
                part.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [part for part in self.modules() if isinstance(part, NORMS)]

    @torch.no_grad()
    def take_over(self, previous: MultiHead, *, ear_init: str) -> None:
        """Start from the net of the step before.

        Args:
            previous: of the same groups but for the last one.
            ear_init: "head_pre": the new branch is a copy of the first one, statistics included; "random": as built.

        Raises:
            ValueError: an unknown `ear_init`, or a net of other steps.
        """
        if previous.groups != self.groups[:-1]:
            raise ValueError(f"previous: got steps of {previous.groups} classes, expected {self.groups[:-1]}")
        if ear_init not in ("head_pre", "random"):
            raise ValueError(f"ear_init: got {ear_init!r}, expected 'head_pre' or 'random'")
        self.load_state_dict(self.state_dict() | previous.state_dict())
        branches = self.decoder.branches
        if len(branches) == len(self.groups) and ear_init == "head_pre":
            branches[-1].load_state_dict(branches[0].state_dict())


def older_parts(steps: int) -> list[str]:
    """How the names of parameters begin that an increment trains slowly: all but ASPP and the newest branch and head.

    Source: ANDYZAQ/BARM@0a59203 trainer/trainer.py:init_optimizer.
    """
    numbers = range(steps - 1)
    return ["backbone.", *(f"decoder.{part}.{k}." for part in ("branches", "heads") for k in numbers)]


def build(
    name: str,
    groups: Sequence[int],
    *,
    channels: int = 3,
    ears: bool = True,
    rule: str = "residual",
    initialise: bool = True,
) -> MultiHead:
    """Make the net `name` for steps of `groups` classes, freshly initialised from torch's default generator.

    Without `initialise` only the shapes of the backbone are right.

    Raises:
        KdzooError: unknown name.
    """
    if name not in SPECS:
        raise unknown("multi-head model", name, SPECS, f"Known: {', '.join(SPECS)}.")
    spec = SPECS[name]
    with in_mmseg():
        backbone = MODELS.build(dict(spec["backbone"]))
    if channels != 3:
        first_convolution(backbone, channels)
    if initialise:
        with in_mmseg():
            backbone.init_weights()
    norm = spec["backbone"]["norm_cfg"]
    decoder = Heads(spec["widths"], spec["channels"], spec["dilations"], norm, groups, ears)
    model = MultiHead(backbone, decoder, groups, spec["stride"])
    model.rule = rule
    return model
