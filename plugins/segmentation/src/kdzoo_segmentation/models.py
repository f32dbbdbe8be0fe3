"""Segmentation models by name: configurations of mmsegmentation, from a few thousand parameters to the papers' sizes.

``build("fcn-mv2-tiny", classes=8, channels=1)`` gives a module whose ``forward(image)`` returns a
`kdzoo.method.Output`; so losses never ask which architecture they talk to.

Shapes: B images, I input channels, H x W pixels, C classes, h x w the head's resolution.

    image       (B, I, H, W) float
    logits      (B, C, H, W): the head's scores, bilinearly resized as mmseg does before its loss and its argmax
    features    "stage1" ... "stageK": the backbone's maps; "head": (B, D, h, w), what the classifier sees;
                "score": (B, C, h, w), the head's scores as they are. Of a Mix Transformer also "embed1" ... "embedK":
                (B, C_k, h_k, w_k), each stage's overlapped patch embedding after its norm and before the blocks, at the
                stage's width and grid; a view of the tokens, whose channels are the innermost axis in memory
    extra       "auxiliary": list of (B, C, h', w'), one an auxiliary head, while training or where
                `Segmentor.always_auxiliary` is set

Not here: pretrained weights of the hub (mmengine would unpickle them): `pretrained` loads a local file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.cards import Side
from kdzoo.errors import unknown
from kdzoo.method import Output
from kdzoo_segmentation.openmmlab import MODELS, MixVisionTransformer, in_mmseg

BN = {"type": "BN", "requires_grad": True}
SYNC = {"type": "SyncBN", "requires_grad": True}


def resnet(depth: int, base: int = 64, norm: dict[str, Any] = BN, dilated: bool = True) -> dict[str, Any]:
    """ResNetV1c; dilated to an output stride of 8 as FCN, PSP and DeepLab want it."""
    return {
        "type": "ResNetV1c",
        "depth": depth,
        "base_channels": base,
        "stem_channels": base,
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "dilations": (1, 1, 2, 4) if dilated else (1, 1, 1, 1),
        "strides": (1, 2, 1, 1) if dilated else (1, 2, 2, 2),
        "norm_cfg": norm,
        "norm_eval": False,
        "style": "pytorch",
        "contract_dilation": True,
    }


def shortened(backbone: dict[str, Any], stages: int) -> dict[str, Any]:
    """A ResNet's first stages."""
    parts = {key: backbone[key][:stages] for key in ("out_indices", "dilations", "strides")}
    return backbone | parts | {"num_stages": stages}


def mobilenet(widen: float, norm: dict[str, Any] = BN) -> dict[str, Any]:
    """MobileNetV2 with an output stride of 8."""
    return {
        "type": "MobileNetV2",
        "widen_factor": widen,
        "strides": (1, 2, 2, 1, 1, 1, 1),
        "dilations": (1, 1, 1, 2, 2, 4, 4),
        "out_indices": (1, 2, 4, 6),
        "norm_cfg": norm,
    }


def mit(dims: int, layers: tuple[int, ...], heads: tuple[int, ...] = (1, 2, 5, 8)) -> dict[str, Any]:
    """Segformer's Mix Transformer."""
    return {
        "type": "MixVisionTransformer",
        "embed_dims": dims,
        "num_layers": list(layers),
        "num_heads": list(heads),
        "patch_sizes": [7, 3, 3, 3],
        "sr_ratios": [8, 4, 2, 1],
        "out_indices": (0, 1, 2, 3),
        "mlp_ratio": 4,
        "drop_path_rate": 0.1,
    }


def head(
    kind: str,
    widths: list[int],
    channels: int,
    norm: dict[str, Any] = BN,
    dilations: tuple[int, ...] = (1, 12, 24, 36),
) -> dict[str, Any]:
    """A decode head of mmseg on the backbone's maps of these widths; `dilations` are those of ASPP."""
    last = len(widths) - 1
    shared = {"channels": channels, "norm_cfg": norm, "align_corners": False, "dropout_ratio": 0.1}
    forms: dict[str, dict[str, Any]] = {
        "fcn": {"type": "FCNHead", "num_convs": 1, "kernel_size": 3, "concat_input": False},
        "psp": {"type": "PSPHead", "pool_scales": (1, 2, 3, 6)},
        "aspp": {"type": "DepthwiseSeparableASPPHead", "dilations": dilations, "c1_in_channels": widths[0]},
        "segformer": {"type": "SegformerHead"},
    }
    form = forms[kind]
    if kind == "aspp":
        form["c1_channels"] = min(48, channels)
    if kind == "segformer":
        return {**form, **shared, "in_channels": widths, "in_index": list(range(len(widths)))}
    return {**form, **shared, "in_channels": widths[last], "in_index": last}


def auxiliary(widths: list[int], channels: int, norm: dict[str, Any] = BN) -> dict[str, Any]:
    """mmseg's auxiliary FCN head on the last map but one; its loss has the weight 0.4 there."""
    place = len(widths) - 2
    return {**head("fcn", widths, channels, norm), "in_channels": widths[place], "in_index": place}


WIDE = {18: [64, 128, 256, 512], 101: [256, 512, 1024, 2048]}  # of a ResNet's maps
SMALL = (1, 2, 4)  # ASPP on maps of 13 pixels


def _tiny(base: int, kind: str, channels: int, depth: int = 18, stages: int = 4) -> dict[str, Any]:
    return {
        # Blocks that begin as identities cost a narrow net most of a run of some hundred steps.
        "backbone": shortened(resnet(depth, base), stages) | {"zero_init_residual": False},
        "widths": [base << k for k in range(stages)],
        "head": kind,
        "channels": channels,
        **({"dilations": SMALL} if kind == "aspp" else {}),
    }


def _tiny3(base: int, kind: str, channels: int) -> dict[str, Any]:
    """Three stages, and scores that begin apart: mmseg's classifier of sd 0.01 says background for too long."""
    return _tiny(base, kind, channels, stages=3) | {"classifier": "kaiming"}


def _full(depth: int, kind: str, channels: int) -> dict[str, Any]:
    return {
        "backbone": resnet(depth, norm=SYNC),
        "widths": WIDE[depth],
        "head": kind,
        "channels": channels,
        "auxiliary": WIDE[depth][2] // 4,
    }


def _mobile(widen: float, widths: list[int], channels: int, norm: dict[str, Any]) -> dict[str, Any]:
    return {"backbone": mobilenet(widen, norm), "widths": widths, "head": "aspp", "channels": channels}


def _segformer(dims: int, layers: tuple[int, ...], heads: tuple[int, ...], channels: int) -> dict[str, Any]:
    return {
        "backbone": mit(dims, layers, heads),
        "widths": [dims * k for k in heads],
        "head": "segformer",
        "channels": channels,
    }


SPECS: dict[str, dict[str, Any]] = {
    # For pictures of about 100 pixels on a CPU.
    "fcn-r18-xxs": _tiny(4, "fcn", 16),
    "fcn-r18-xs": _tiny(8, "fcn", 16),
    "fcn-r18-s": _tiny(16, "fcn", 32),
    "fcn-r34-xs": _tiny(8, "fcn", 16, depth=34),
    "fcn-r18-xs-aux": _tiny(8, "fcn", 16) | {"auxiliary": 8},
    "psp-r18-xs": _tiny(8, "psp", 16),
    "psp-r18-s": _tiny(16, "psp", 32),
    "deeplabv3p-r18-xs": _tiny(8, "aspp", 16),
    "deeplabv3p-r18-s": _tiny(16, "aspp", 32),
    "deeplabv3p-r18-xs-aux": _tiny(8, "aspp", 16) | {"auxiliary": 8},
    "deeplabv3p-r18-s-aux": _tiny(16, "aspp", 32) | {"auxiliary": 16},
    "deeplabv3p-r34-xs": _tiny(8, "aspp", 16, depth=34),
    "deeplabv3p-r18-m": _tiny(24, "aspp", 48),
    "fcn-r18x3-xs": _tiny3(8, "fcn", 16),
    "psp-r18x3-xs": _tiny3(8, "psp", 16),
    "psp-r18x3-s": _tiny3(16, "psp", 32),
    "deeplabv3p-mv2-xs": _mobile(0.25, [8, 8, 24, 80], 16, BN) | {"dilations": SMALL},
    "segformer-xs": _segformer(8, (1, 1, 1, 1), (1, 2, 4, 8), 16),
    "segformer-s": _segformer(16, (2, 2, 2, 2), (1, 2, 4, 8), 64),
    # The papers' sizes.
    "fcn-r18": _full(18, "fcn", 128),
    "psp-r18": _full(18, "psp", 128),
    "psp-r101": _full(101, "psp", 512),
    "deeplabv3p-r18": _full(18, "aspp", 128),
    "deeplabv3p-r101": _full(101, "aspp", 512),
    "deeplabv3p-wr34": {  # ResNet-34 of twice the width
        "backbone": resnet(34, 128, SYNC) | {"stem_channels": 64},
        "widths": [128, 256, 512, 1024],
        "head": "aspp",
        "channels": 256,
        "auxiliary": 256,
    },
    "deeplabv3p-mv2": _mobile(1.0, [24, 32, 96, 320], 512, SYNC) | {"auxiliary": 256},
    "segformer-b0": _segformer(32, (2, 2, 2, 2), (1, 2, 5, 8), 256),
    "segformer-b2": _segformer(64, (3, 4, 6, 3), (1, 2, 5, 8), 768),
}  # fmt: skip


class Segmentor(nn.Module):
    """An EncoderDecoder of mmseg that answers with an `Output`.

    Attributes:
        net: the EncoderDecoder, for mmseg's own tools.
        num_classes: C.
        always_auxiliary: give the auxiliary heads' scores in evaluation mode, too: a teacher whose they are wanted.
    """

    net: Any  # its parts are modules; mypy would have them be tensors, too

    def __init__(self, net: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.net, self.num_classes, self.always_auxiliary = net, num_classes, False

    def forward(self, image: Tensor) -> Output:
        with patch_embeddings(self.net.backbone) as embedded:
            stages = self.net.backbone(image)
        features = {f"stage{k}": stage for k, stage in enumerate(stages, 1)} | embedded
        seen: list[Tensor] = []
        decoder = self.net.decode_head
        # What cls_seg gets, before its dropout.
        entry = decoder.dropout if decoder.dropout is not None else decoder.conv_seg
        handle = entry.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            score = decoder(stages)
        finally:
            handle.remove()
        features["head"], features["score"] = seen[-1], score
        extra: dict[str, Any] = {}
        if (self.training or self.always_auxiliary) and self.net.with_auxiliary_head:
            extra["auxiliary"] = [self.net.auxiliary_head(stages)]
        return Output(logits=resized(score, image), features=features, extra=extra)


@contextmanager
def patch_embeddings(backbone: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What the patch embeddings of a Mix Transformer give meanwhile, by name; of another backbone nothing."""
    found: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: Any, output: tuple[Tensor, tuple[int, int]]) -> None:
        tokens, grid = output
        found[name] = tokens.transpose(1, 2).unflatten(2, grid)

    stages = backbone.layers if isinstance(backbone, MixVisionTransformer) else ()
    handles = [
        stage[0].register_forward_hook(partial(keep, f"embed{k}")) for k, stage in enumerate(stages, 1)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def resized(score: Tensor, like: Tensor) -> Tensor:
    """Scores (B, C, h, w) at the size of an image or a label map, as mmseg resizes them (align_corners False)."""
    size = like.shape[-2:]
    return (
        score if score.shape[2:] == size else F.interpolate(score, size, mode="bilinear", align_corners=False)
    )


def build(name: str, *, classes: int, channels: int = 3, initialise: bool = True) -> Segmentor:
    """Make the model `name`, freshly initialised by mmseg's rules (and its spec's) from torch's default generator.

    Args:
        name: a key of `SPECS`.
        classes: C.
        channels: I; the first convolution of the backbone is replaced where it is not 3.
        initialise: draw the first weights; without, only the shapes are right.

    Raises:
        KdzooError: unknown name.
    """
    if name not in SPECS:
        raise unknown("segmentation model", name, SPECS, f"Known: {', '.join(SPECS)}.")
    spec = SPECS[name]
    norm = spec["backbone"].get("norm_cfg", BN)
    rates = {"dilations": spec["dilations"]} if "dilations" in spec else {}
    decoder = head(spec["head"], spec["widths"], spec["channels"], norm, **rates) | {"num_classes": classes}
    helper = None
    if "auxiliary" in spec:
        helper = auxiliary(spec["widths"], spec["auxiliary"], norm) | {"num_classes": classes}
    config = {
        "type": "mmseg.EncoderDecoder",
        "backbone": dict(spec["backbone"]),
        "decode_head": decoder,
        "auxiliary_head": helper,
        "test_cfg": {"mode": "whole"},
    }
    with in_mmseg():
        net = MODELS.build(config)
    if channels != 3:
        first_convolution(net.backbone, channels)
    if initialise:
        with in_mmseg():
            net.init_weights()
        if spec.get("classifier") == "kaiming":
            nn.init.kaiming_normal_(net.decode_head.conv_seg.weight)
    return Segmentor(net, classes)


def first_convolution(backbone: nn.Module, channels: int) -> None:
    """Give the backbone's first convolution another number of input channels."""
    name, old = next((name, part) for name, part in backbone.named_modules() if isinstance(part, nn.Conv2d))
    shape: dict[str, Any] = {"stride": old.stride, "padding": old.padding, "bias": old.bias is not None}
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, **shape)  # type: ignore[arg-type]
    owner, _, attribute = name.rpartition(".")
    setattr(backbone.get_submodule(owner), attribute, new)


@cache  # asked for at every plan
def side(name: str, classes: int, channels: int, height: int, width: int) -> Side:
    """What a model by name takes and gives, found without weights on torch's ``meta`` device."""
    backbone = SPECS[name]["backbone"]["type"] if name in SPECS else ""
    # Mix Transformers read their drop rates off a tensor, which "meta" refuses.
    with torch.device("cpu" if backbone == "MixVisionTransformer" else "meta"):
        model = build(name, classes=classes, channels=channels, initialise=False).eval()
    with torch.device("meta"), torch.no_grad():
        said = model.to("meta")(torch.empty(1, channels, height, width))
    layers = {feature: list(value.shape[1:]) for feature, value in said.features.items()}
    return Side(layers=layers, classes=classes)
