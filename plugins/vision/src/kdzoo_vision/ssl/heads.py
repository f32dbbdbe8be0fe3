"""Projection heads of self-distillation: an MLP on the pooled feature (DINO), a transformer on the tokens (MOKD).

Shapes: B images, N tokens (a square grid, row by row), C channels of a feature map, D width of the tokens, I width of
a pooled feature, K outputs.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.errors import KdzooError

INIT_STD = 0.02  # skyoux/mokd@f7b1386 models/mokd.py: truncated normal, for heads of width 2,048


class WeightNormed(nn.Module):
    """A linear map without bias whose rows are unit vectors times a learned length: y = (g v / |v|) x.

    Lengths start at 1. With ``learn_length=False`` they stay there: DINO's norm_last_layer, which steadies the
    training of convolution nets.

    Source: Salimans & Kingma 2016, arXiv 1602.07868; skyoux/mokd@f7b1386 models/mokd.py DINOHead.
    """

    def __init__(self, width: int, outputs: int, learn_length: bool) -> None:
        super().__init__()
        self.direction = nn.Parameter(nn.Linear(width, outputs, bias=False).weight.detach().clone())
        self.length = nn.Parameter(torch.ones(outputs, 1), requires_grad=learn_length)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.length * F.normalize(self.direction, dim=1))


class MlpHead(nn.Module):
    """Three linear layers with GELU, L2 normalisation, a weight-normalised last layer: (B, I) -> (B, K).

    `std` of the first weights belongs to the width: far below 1 / sqrt(width) the vector that is normalised starts so
    short that a step of the usual length turns it anywhere.

    Source: Caron et al. 2021, arXiv 2104.14294, appendix C; skyoux/mokd@f7b1386 models/mokd.py DINOHead.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        learn_length: bool = False,
        batch_norm: bool = False,
        std: float = INIT_STD,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (inputs, hidden):
            layers.append(nn.Linear(width, hidden))
            if batch_norm:
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.mlp.apply(partial(init_linear, std=std))
        self.last_layer = WeightNormed(bottleneck, outputs, learn_length)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last_layer(F.normalize(self.mlp(x), dim=-1))
        return logits


class TokenHead(nn.Module):
    """Transformer blocks on tokens, their mean, a weight-normalised last layer; a query may be asked along.

    tokens + positions -> blocks -> layer norm -> mean over tokens -> (B, K). The learned positions are those of
    a `side` x `side` grid and are resized bicubically for a smaller one. A feature map is brought to D channels by a
    1x1 convolution first, and the mean of the result over its positions is what its model asks with.

    A query is put before the tokens, without a position, takes part in attention, and is left out of the mean: the
    tokens answer it.

    Args:
        width: D.
        outputs: K.
        side: of the grid of a global crop.
        channels: C of a feature map; None for tokens that have width D already.
        depth, heads, mlp_ratio: of the blocks.

    Source: skyoux/mokd@f7b1386 backbones/vision_transformer.py THead_CNN, THead_ViT.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        side: int,
        channels: int | None = None,
        depth: int = 3,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        std: float = INIT_STD,
    ) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block  # two seconds

        if width % heads:
            raise KdzooError(
                f"T-Head: {heads} heads for tokens of width {width}, a divisor of the width expected: channels would "
                "be left over. Set thead_heads to another number."
            )
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # skyoux/mokd@f7b1386 main_mokd.py
        self.reduce = nn.Conv2d(channels, width, 1) if channels else None
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, side * side, width), std=INIT_STD))
        self.blocks = nn.ModuleList(
            [Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth)]
        )
        self.norm = norm(width)
        self.blocks.apply(partial(init_linear, std=std))
        self.last_layer = WeightNormed(width, outputs, learn_length=True)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, N, D) as it is, or a feature map (B, C, H, W) reduced to D channels and laid out as (B, H W, D)."""
        return x if self.reduce is None else self.reduce(x).flatten(2).transpose(1, 2)

    def forward(self, tokens: Tensor, query: Tensor | None = None) -> Tensor:
        """(B, N, D) from `tokens`, and (B, D) or None -> (B, K)."""
        x = tokens + resized_positions(self.positions, tokens.shape[1])
        if query is not None:
            x = torch.cat([query.unsqueeze(1), x], 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if query is not None:
            x = x[:, 1:]
        logits: Tensor = self.last_layer(x.mean(1))
        return logits


def resized_positions(positions: Tensor, count: int) -> Tensor:
    """(1, N, D) position embeddings of a square grid, resized to the square grid of `count` tokens.

    Raises:
        KdzooError: `count` is no square number, so that rows and columns cannot be told.
    """
    if positions.shape[1] == count:
        return positions
    old, new = math.isqrt(positions.shape[1]), math.isqrt(count)
    if new * new != count:
        raise KdzooError(
            f"T-Head: got {count} tokens, expected the square number of a square crop; positions would be those of "
            "other places. Use square crops."
        )
    grid = positions.unflatten(1, (old, old)).permute(0, 3, 1, 2)
    # By scale factor, a little too large, as in DINO's code: the resized grid is sampled at these places.
    scale = (new + 0.1) / old
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return grid.flatten(2).transpose(1, 2)


def init_linear(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
