"""Backbones whose tokens can be read: convolution nets with their last map, ViTs with a class token.

Shapes: B images, F width of the pooled feature, C channels of the last map, N patch tokens, D their width.

    Output.embedding   (B, F): the pooled map; the class token of a ViT
    Output.features    "map" (B, C, H, W) of a convolution net, "tokens" (B, N, D) of a ViT, after its last norm
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdzoo.errors import KdzooError
from kdzoo.method import Output
from kdzoo_vision import models
from kdzoo_vision.nets import ConvNet
from kdzoo_vision.timm_nets import TimmModel, vit


class MapNet(nn.Module):
    """A convolution net without classifier."""

    def __init__(self, net: ConvNet | TimmModel) -> None:
        super().__init__()
        self.net = net
        self.width = net.num_features
        # MobileNet widens its pooled feature beyond its last map.
        info = net.model.feature_info[net.indices[-1]] if isinstance(net, TimmModel) else {}
        self.channels: int | None = int(info.get("num_chs", net.num_features))

    def forward(self, x: Tensor) -> Output:
        said: Output = self.net(x)
        last = max(
            (name for name in said.features if name.startswith("stage")), key=lambda name: int(name[5:])
        )
        return Output(embedding=said.embedding, features={"map": said.features[last]})


class TokenNet(nn.Module):
    """timm's VisionTransformer with a class token, for images of any size that its patches divide."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.width = int(net.embed_dim)
        self.channels: int | None = None

    def forward(self, x: Tensor) -> Output:
        x = self.net.forward_features(x)
        return Output(embedding=x[:, 0], features={"tokens": x[:, self.net.num_prefix_tokens :]})


Backbone = MapNet | TokenNet


def build(name: str, *, in_channels: int, image_size: int, patch: int, drop_path: float = 0.0) -> Backbone:
    """The backbone `name`: a convolution net or a ViT of `kdzoo_vision.models`, or of timm.

    Args:
        in_channels: of an image.
        image_size: side of a global crop, pixels.
        patch: side of a patch of one of our own ViTs, pixels; the names of timm's say theirs.
        drop_path: share of a ViT's residual branches that are dropped in training, growing with depth.

    Raises:
        KdzooError: an unknown name, or a model that is neither kind.
    """
    from timm.models.vision_transformer import VisionTransformer

    spec = models.MODELS.get(name)
    if spec is not None and spec.builder is vit:
        options = spec.options
        if image_size % patch:
            raise KdzooError(
                f"{name}: patch {patch} for image_size {image_size}, a divisor expected: pixels would be left over. "
                "Set patch to one."
            )
        net = VisionTransformer(
            img_size=image_size,
            patch_size=patch,
            in_chans=in_channels,
            num_classes=0,
            embed_dim=options["dim"],
            depth=options["depth"],
            num_heads=options["heads"],
            mlp_ratio=options["mlp_ratio"],
            drop_path_rate=drop_path,
            dynamic_img_size=True,
            weight_init="jax",  # by fan-in: a standard deviation of 0.02 suits widths of hundreds
        )
        return TokenNet(net)
    plain = name.removeprefix("timm:")
    if spec is None and plain.startswith(("vit_", "deit_")):
        made = models.build(
            name,
            num_classes=None,
            in_channels=in_channels,
            image_size=image_size,
            dynamic_img_size=True,
            drop_path_rate=drop_path,
        )
        assert isinstance(made, TimmModel)
        if isinstance(made.model, VisionTransformer) and made.model.num_prefix_tokens:
            return TokenNet(made.model)
    else:
        made = models.build(name, num_classes=None, in_channels=in_channels, image_size=image_size)
        if isinstance(made, ConvNet) or (
            isinstance(made, TimmModel) and not hasattr(made.model, "patch_embed")
        ):
            return MapNet(made)
    raise KdzooError(
        f"{name}: expected a convolution net, or a ViT with a class token: the heads read a map or tokens. Choose "
        "cnn-m, resnet-8, timm:resnet50, vit-xs, timm:vit_small_patch16_224 or one like these."
    )
