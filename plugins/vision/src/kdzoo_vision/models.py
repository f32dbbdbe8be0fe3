"""Image models by name: small conv nets, CIFAR-style ResNets and VGG-11, small ViTs, and every timm model.

``build("cnn-s", num_classes=10, in_channels=1, image_size=28)`` gives a module whose ``forward(x)`` returns a
`kdzoo.method.Output`; so losses never ask which architecture they talk to.

Shapes: B batch, I input channels, S image side in pixels, C classes, F pooled width, D embedding width,
W_k, H_k the channels and the side of stage k.

    x           (B, I, S, S) float
    logits      (B, C), or None when `num_classes` is None
    features    stage1 (B, W_1, H_1, H_1) ... stageK, after the activation and before any pooling that
                follows; pooled (B, F); timm's convolution stems appear as "stem"
    embedding   (B, D): a linear map of pooled, or pooled itself; L2-normalised on request

Names that are not in `MODELS` are timm's; ``timm:resnet18`` says so explicitly. Own ResNets are for images of
28 to 64 pixels: their stem is a 3x3 convolution of stride 1 without pooling (He et al. 2015,
arXiv:1512.03385, section 4.2), where ImageNet's would leave a 32-pixel image with a last map of one pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from kdzoo.errors import KdzooError, unknown
from kdzoo_vision.deit import deit, timm_deit
from kdzoo_vision.nets import ImageModel, Shape, cnn, preresnet, resnet, vgg
from kdzoo_vision.timm_nets import from_timm, vit

if TYPE_CHECKING:
    from kdzoo.runs import Run


@dataclass(frozen=True, slots=True)
class Spec:
    """A named model: its builder, the builder's options and its size.

    Attributes:
        options: the values that make this name; `build` may override each.
        parameters: how many numbers it trains with 10 classes on a 28x28 image of one channel.
    """

    builder: Callable[..., ImageModel]
    options: dict[str, Any]
    parameters: int


MODELS: dict[str, Spec] = {
    "cnn-xs": Spec(cnn, {"widths": (4, 8, 16), "strides": None, "convs": 1}, 1_702),
    "cnn-s": Spec(cnn, {"widths": (8, 16, 32), "strides": None, "convs": 1}, 6_274),
    "cnn-m": Spec(cnn, {"widths": (16, 32, 64), "strides": None, "convs": 1}, 24_058),
    "cnn-l": Spec(cnn, {"widths": (32, 64, 128), "strides": None, "convs": 1}, 94_186),
    "cnn-l4": Spec(cnn, {"widths": (32, 64, 128, 128), "strides": (2, 2, 2, 1), "convs": 1}, 241_898),
    "cnn-deep": Spec(cnn, {"widths": (16, 32, 64), "strides": None, "convs": 2}, 72_666),
    "resnet-8": Spec(resnet, {"depth": 8, "widths": (16, 32, 64)}, 77_754),
    "resnet-14": Spec(resnet, {"depth": 14, "widths": (16, 32, 64)}, 174_970),
    "resnet-20": Spec(resnet, {"depth": 20, "widths": (16, 32, 64)}, 272_186),
    "resnet-32": Spec(resnet, {"depth": 32, "widths": (16, 32, 64)}, 466_618),
    "resnet-56": Spec(resnet, {"depth": 56, "widths": (16, 32, 64)}, 855_482),
    "resnet-18": Spec(from_timm, {"model": "resnet18", "stem": "small"}, 11_172_810),
    "resnet-50": Spec(from_timm, {"model": "resnet50", "stem": "small"}, 23_519_690),
    "preresnet-20": Spec(preresnet, {"depth": 20, "widths": (16, 32, 64)}, 271_994),
    "preresnet-56": Spec(preresnet, {"depth": 56, "widths": (16, 32, 64)}, 855_290),
    "vgg-11": Spec(vgg, {"widths": (64, 128, 256, 512, 512)}, 9_227_210),
    "vit-xs": Spec(vit, {"dim": 32, "depth": 3, "heads": 2, "mlp_ratio": 2.0, "patch": None}, 28_138),
    "vit-s": Spec(vit, {"dim": 64, "depth": 4, "heads": 4, "mlp_ratio": 2.0, "patch": None}, 138_890),
    "vit-m": Spec(vit, {"dim": 96, "depth": 6, "heads": 6, "mlp_ratio": 4.0, "patch": None}, 678_538),
    "deit-xxs": Spec(deit, {"dim": 24, "depth": 3, "heads": 3, "mlp_ratio": 2.0, "patch": None}, 16_844),
    "deit-xs": Spec(deit, {"dim": 48, "depth": 3, "heads": 3, "mlp_ratio": 2.0, "patch": None}, 61_316),
    "deit-ti": Spec(timm_deit, {"model": "deit_tiny_distilled_patch16_224"}, 5_392_916),
    "deit-s": Spec(timm_deit, {"model": "deit_small_distilled_patch16_224"}, 21_402_644),
    "deit-b": Spec(timm_deit, {"model": "deit_base_distilled_patch16_224"}, 85_272_596),
}


def build(
    name: str,
    *,
    num_classes: int | None,
    embedding_dim: int | None = None,
    in_channels: int,
    image_size: int,
    pretrained: bool = False,
    normalize: bool = False,
    **options: Any,
) -> ImageModel:
    """Make the model `name`, freshly initialised from torch's default generator.

    Args:
        name: a key of `MODELS`, a timm name, or ``timm:NAME``.
        num_classes: C; None for a model without a classifier (`Output.logits` is then None).
        embedding_dim: D of a linear embedding head; None makes the pooled features the embedding.
        in_channels: I.
        image_size: S, pixels; only models with position embeddings depend on it.
        pretrained: timm models only: load timm's weights.
        normalize: divide the embedding by its L2 norm.
        options: the builder's own (see `MODELS`), or keyword arguments of `timm.create_model`.

    Raises:
        KdzooError: unknown name or option, pretrained weights that do not exist or cannot be had.
    """
    heads = {"num_classes": num_classes, "embedding_dim": embedding_dim, "normalize": normalize}
    shape = Shape(in_channels, image_size, pretrained, heads)
    spec = MODELS.get(name)
    if spec is None:
        return from_timm(shape, _timm_name(name), **options)
    if pretrained:
        raise KdzooError(
            f"{name}: pretrained=True given, but no weights exist for this architecture: it would be random. "
            f"Set pretrained=false, or choose a timm model (timm:resnet18)."
        )
    wrong = sorted(set(options) - set(spec.options)) if spec.builder is not from_timm else []
    if wrong:
        remedy = f"{name} takes {', '.join(spec.options)}; remove or rename it."
        raise unknown(f"option of {name}", wrong[0], spec.options, remedy)
    return spec.builder(shape, **{**spec.options, **options})


def _timm_name(name: str) -> str:
    """`name` without ``timm:``, after a check that timm has it."""
    import timm

    plain = name.removeprefix("timm:")
    if timm.is_model(plain):
        return plain
    known = (
        [f"timm:{n}" for n in timm.list_models()]
        if name.startswith("timm:")
        else [*MODELS, *timm.list_models()]
    )
    raise unknown(
        "model", name, known, f"Own models: {', '.join(MODELS)}; all others are timm's (timm:resnet18)."
    )


def wants_pretrained(run: Run, role: str) -> bool:
    """Whether a role starts from timm's weights: `teacher_pretrained` for the teacher where the task has it, else
    `pretrained`; and only where no trained weights are loaded over them, or they would be downloaded for nothing."""
    asked = bool(run.cfg.get("pretrained", False))
    if role == "teacher":
        asked = bool(run.cfg.get("teacher_pretrained", asked))
    fresh = any(
        r.source == f"init:{role}" or (r.name == role and r.source == "init") for r in run.roles.values()
    )
    return asked and fresh


def count_parameters(model: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
