"""Convolutional nets for images of 28 to 64 pixels, and what all image models share.

Shapes: see `kdzoo_vision.models`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.method import Output


class ImageModel(nn.Module):
    """What all models share: the embedding head and the `Output`.

    Attributes:
        num_features: F, the width of the pooled features.
        num_classes: C, or None.
        embedding_dim: D, the width of `Output.embedding` (F without an embedding head).
    """

    def __init__(
        self, num_features: int, num_classes: int | None, embedding_dim: int | None, normalize: bool
    ):
        super().__init__()
        self.num_features = num_features
        self.num_classes = num_classes
        self.embedding_dim = embedding_dim or num_features
        self.normalize = normalize
        self.embed = nn.Linear(num_features, embedding_dim) if embedding_dim else None

    def output(self, features: dict[str, Tensor], pooled: Tensor, logits: Tensor | None) -> Output:
        """Put the parts together; `features` gains "pooled"."""
        features["pooled"] = pooled
        embedding = pooled if self.embed is None else self.embed(pooled)
        if self.normalize:
            embedding = F.normalize(embedding, dim=1)
        return Output(logits=logits, features=features, embedding=embedding)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a builder must know besides its own options."""

    in_channels: int
    image_size: int
    pretrained: bool
    heads: dict[str, Any]


class ConvNet(ImageModel):
    """Stages in a row, global average pooling, a linear classifier: CNN, ResNet and VGG are all of this form.

    `pool` puts 2x2 max pooling between stages, outside them: VGG's features are read before it.
    """

    def __init__(
        self,
        stem: nn.Module | None,
        stages: Sequence[nn.Module],
        width: int,
        pool: bool,
        heads: dict[str, Any],
    ):
        super().__init__(width, heads["num_classes"], heads["embedding_dim"], heads["normalize"])
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        # ceil_mode: a side of 28 stays alive through five halvings; a side of 32 is not affected.
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if pool else None
        self.classifier = nn.Linear(width, self.num_classes) if self.num_classes else None

    def forward(self, x: Tensor) -> Output:
        features: dict[str, Tensor] = {}
        x = channels_last(x)
        if self.stem is not None:
            x = self.stem(x)
        for k, stage in enumerate(self.stages, 1):
            if k > 1 and self.pool is not None:
                x = self.pool(x)
            x = features[f"stage{k}"] = stage(x)
        pooled = x.mean((2, 3))
        return self.output(features, pooled, None if self.classifier is None else self.classifier(pooled))


def channels_last(x: Tensor) -> Tensor:
    """`x` with the strides of (B, H, W, I): CPU convolutions then take 15 to 30 % less time.

    All maps that follow keep this layout, so a loss flattens them with `flatten` or `reshape`, never `view`.
    The weights stay contiguous, as safetensors wants them.
    """
    if x.shape[1] == 1:  # both layouts hold the same numbers in the same order; only strides tell them apart
        return x.reshape(x.shape[0], *x.shape[2:], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def conv_bn_relu(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """3x3 convolution (no bias: the norm has one), batch norm, ReLU in place."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def cnn(
    shape: Shape, widths: Sequence[int] = (8, 16, 32), strides: Sequence[int] | None = None, convs: int = 1
) -> ConvNet:
    """`convs` 3x3 convolutions a stage, the first strided (by 2 unless said otherwise).

    Striding in the first layer of all makes a step on 28x28 images four times cheaper.
    """
    stages, inputs = [], shape.in_channels
    for width, stride in zip(widths, strides or (2,) * len(widths), strict=True):
        stage = conv_bn_relu(inputs, width, stride)
        for _ in range(convs - 1):
            stage += conv_bn_relu(width, width)
        stages.append(nn.Sequential(*stage))
        inputs = width
    return ConvNet(None, stages, widths[-1], False, shape.heads)


def resnet(shape: Shape, depth: int = 8, widths: Sequence[int] = (16, 32, 64)) -> ConvNet:
    """CIFAR ResNet of 6n + 2 layers, from timm's BasicBlock; projection shortcuts where the shape changes."""
    from timm.models.resnet import BasicBlock

    blocks = _blocks("resnet", depth, widths)
    stages, inputs = [], widths[0]
    for k, width in enumerate(widths):
        stage: list[nn.Module] = []
        for n in range(blocks):
            stride = 2 if k and n == 0 else 1
            shortcut = None
            if stride != 1 or inputs != width:
                shortcut = nn.Sequential(
                    nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
                )
            stage.append(BasicBlock(inputs, width, stride, shortcut))
            inputs = width
        stages.append(nn.Sequential(*stage))
    return ConvNet(
        nn.Sequential(*conv_bn_relu(shape.in_channels, widths[0])), stages, widths[-1], False, shape.heads
    )


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after its batch norm and ReLU, added to the input as it came.

    Where the shape changes, a 1x1 convolution takes the input's place.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.relu(self.norm1(x), inplace=True))
        branch: Tensor = self.conv2(F.relu(self.norm2(inner), inplace=True))
        return branch + self.shortcut(x)


def preresnet(shape: Shape, depth: int = 20, widths: Sequence[int] = (16, 32, 64)) -> ConvNet:
    """CIFAR ResNet of 6n + 2 layers with pre-activation (He et al. 2016, arXiv:1603.05027).

    Its stages end without an activation; the last one holds the net's final batch norm and ReLU.
    """
    blocks = _blocks("preresnet", depth, widths)
    stages, inputs = [], widths[0]
    for k, width in enumerate(widths):
        stage: list[nn.Module] = []
        for n in range(blocks):
            stage.append(PreActivationBlock(inputs, width, 2 if k and n == 0 else 1))
            inputs = width
        stages.append(nn.Sequential(*stage))
    stages[-1].extend([nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)])
    stem = nn.Conv2d(shape.in_channels, widths[0], 3, padding=1, bias=False)
    return ConvNet(stem, stages, inputs, False, shape.heads)


def _blocks(name: str, depth: int, widths: Sequence[int]) -> int:
    """How many blocks of two layers a stage has in a net of three stages."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1 or len(widths) != 3:
        raise KdzooError(
            f"{name}: depth {depth}, widths {tuple(widths)} given, depth = 6n + 2 (8, 14, 20, ...) and three "
            "widths expected: the net would have another number of layers than it says. Set another depth."
        )
    return blocks


def vgg(shape: Shape, widths: Sequence[int] = (64, 128, 256, 512, 512)) -> ConvNet:
    """VGG-11's eight convolutions with batch norm and one linear layer (its three suit 224 pixels)."""
    stages, inputs = [], shape.in_channels
    for k, width in enumerate(widths):
        stage = conv_bn_relu(inputs, width)
        if k >= 2:  # configuration A of Simonyan & Zisserman 2014 (arXiv:1409.1556), table 1
            stage += conv_bn_relu(width, width)
        stages.append(nn.Sequential(*stage))
        inputs = width
    return ConvNet(None, stages, widths[-1], True, shape.heads)
