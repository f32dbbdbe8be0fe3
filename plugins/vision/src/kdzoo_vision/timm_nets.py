"""timm's models behind the same `Output`: any of them by name, and small ViTs made from its parts.

Shapes: see `kdzoo_vision.models`. timm is imported when a model is built: that takes two seconds.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdzoo.errors import KdzooError
from kdzoo.method import Output
from kdzoo_vision.nets import ImageModel, Shape

# A net with more blocks than this (a ViT) names four of them, evenly spaced, the last included.
MAX_STAGES = 6


class TimmModel(ImageModel):
    """A timm model with its own classifier; features are what its `forward_intermediates` lists."""

    def __init__(self, model: Any, heads: dict[str, Any]):
        width = int(getattr(model, "head_hidden_size", None) or model.num_features)
        super().__init__(width, heads["num_classes"], heads["embedding_dim"], heads["normalize"])
        self.model = model
        modules = [info["module"] for info in model.feature_info]
        # ResNet lists the activation of its stem, MobileNet the norm of its stem, before the first stage.
        stem = [0] if modules[0] in ("act1", "bn1") or modules[0].startswith("stem") else []
        stages = [i for i in range(len(modules)) if i not in stem]
        if len(stages) > MAX_STAGES:
            stages = [stages[len(stages) * k // 4 - 1] for k in range(1, 5)]
        self.indices = [*stem, *stages]
        self.names = ["stem"] * len(stem) + [f"stage{k}" for k in range(1, len(stages) + 1)]
        head = model.get_classifier() if self.num_classes else None
        # Pooling once: logits from the pooled features, unless timm's head does more than one linear map.
        self.linear_head = isinstance(head, nn.Linear) and not getattr(model, "drop_rate", 0.0)

    def forward(self, x: Tensor) -> Output:
        final, maps = self.model.forward_intermediates(x, indices=self.indices)
        pooled = self.model.forward_head(final, pre_logits=True)
        logits = None
        if self.num_classes:
            logits = (
                self.model.get_classifier()(pooled) if self.linear_head else self.model.forward_head(final)
            )
        return self.output(dict(zip(self.names, maps, strict=True)), pooled, logits)


def patch_of(name: str, shape: Shape, dim: int, heads: int, patch: int | None, *, across: int) -> int:
    """The side of a ViT's patches in pixels: the one given, or the divisor of the image's side that comes nearest to
    `across` patches in a row.

    Raises:
        KdzooError: pixels or channels would be left over.
    """
    side = shape.image_size
    if patch is None:
        patch = min(
            (p for p in range(1, side + 1) if side % p == 0), key=lambda p: (abs(p - side / across), p)
        )
    if side % patch or dim % heads:
        raise KdzooError(
            f"{name}: patch {patch} for image_size {side}, {heads} heads for dim {dim} given, patch a divisor of "
            "image_size and heads a divisor of dim expected: pixels or channels would be left over. Set others."
        )
    return patch


def vit(
    shape: Shape,
    dim: int = 32,
    depth: int = 3,
    heads: int = 2,
    mlp_ratio: float = 2.0,
    patch: int | None = None,
) -> TimmModel:
    """timm's VisionTransformer with average pooling; the default patch gives about 7 x 7 tokens."""
    from timm.models.vision_transformer import VisionTransformer

    patch = patch_of("vit", shape, dim, heads, patch, across=7)
    model = VisionTransformer(
        img_size=shape.image_size,
        patch_size=patch,
        in_chans=shape.in_channels,
        num_classes=shape.heads["num_classes"] or 0,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_ratio,
        class_token=False,
        global_pool="avg",
    )
    return TimmModel(model, shape.heads)


def from_timm(shape: Shape, model: str, stem: str = "standard", **options: Any) -> TimmModel:
    """Any timm model; ``stem="small"`` gives a ResNet the stride-1 3x3 stem without pooling."""
    import timm

    settings = timm.get_pretrained_cfg(model)
    if shape.pretrained and (stem != "standard" or settings is None or not settings.has_weights):
        raise KdzooError(
            f"{model}: pretrained=True with stem={stem!r} given, a timm model that has weights, with its "
            "standard stem, expected: some layers would be random under the name of a pretrained model. "
            "Choose a model from timm.list_pretrained(), or pretrained=False."
        )
    if settings is not None and settings.fixed_input_size:
        options.setdefault("img_size", shape.image_size)
    classes = shape.heads["num_classes"] or 0
    try:
        net = timm.create_model(
            model, pretrained=shape.pretrained, num_classes=classes, in_chans=shape.in_channels, **options
        )
    except TypeError as error:
        raise KdzooError(
            f"{model}: timm refuses the options {options}: {error}. Remove or rename them."
        ) from error
    except Exception as error:
        if not shape.pretrained:
            raise
        # The download goes through several libraries, each with its own exceptions for "no network".
        raise KdzooError(
            f"{model}: its pretrained weights could not be loaded ({type(error).__name__}: {error}). "
            "Training would start from random weights, so it stops here. Connect to the network once, or set "
            "HF_HOME to a folder that has them."
        ) from error
    if not hasattr(net, "forward_intermediates"):
        raise KdzooError(
            f"{model}: a timm model with forward_intermediates expected: without it the inner features that "
            "distillation reads are missing. Choose another model or a newer timm."
        )
    if stem == "small":
        conv1 = getattr(net, "conv1", None)
        if not (isinstance(conv1, nn.Conv2d) and hasattr(net, "maxpool")):
            raise KdzooError(
                f"{model}: stem='small' is for timm's ResNets with one stem convolution: this one would keep "
                "its large stem. Leave stem out."
            )
        net.conv1 = nn.Conv2d(shape.in_channels, conv1.out_channels, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif stem != "standard":
        raise KdzooError(f"{model}: stem={stem!r} given, 'standard' or 'small' expected. Set one of these.")
    return TimmModel(net, shape.heads)
