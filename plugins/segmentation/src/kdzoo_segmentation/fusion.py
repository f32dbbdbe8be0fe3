"""Trained modules that bring the student's stages to the teacher's widths, from the deepest stage to the first.

Shapes: B images; stage i of K has C_i channels in the student and D_i in the teacher on a grid of h_i x w_i; M channels
in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SQUEEZED = 32  # fewest channels of the squeezed vector: RuipingL/TransKD@39ab795 train/CSF.py:SK
RATIO = 16  # of M to the squeezed vector, as there


class SelectiveFusion(nn.Module):
    """One stage of the cross selective fusion: its own map, and that of the deeper stage, channel by channel.

    With x = BN(conv1x1(F_i)) and y the deeper stage's r_(i+1), upsampled by nearest neighbour:

        z = ReLU(BN(W GAP(x + y)));  A_c, B_c = softmax over the two branches of (a z)_c, (b z)_c
        r_i = A x + B y;  o_i = BN(conv3x3(r_i))

    A single image has no batch statistics at one position: there z comes from a second layer without BN.

    Args:
        inner: C_i.
        middle: M.
        outer: D_i.
        fuse: whether there is a deeper stage; without, r_i = x.

    Source: RuipingL/TransKD@39ab795 train/CSF.py:SK.
    """

    def __init__(self, inner: int, middle: int, outer: int, *, fuse: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(inner, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.leave = nn.Sequential(nn.Conv2d(middle, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer))
        self.fuse = fuse
        if fuse:
            squeezed = max(middle // RATIO, SQUEEZED)
            self.squeeze = nn.Sequential(
                nn.Conv2d(middle, squeezed, 1, bias=False), nn.BatchNorm2d(squeezed), nn.ReLU(inplace=True)
            )
            self.squeeze_alone = nn.Sequential(
                nn.Conv2d(middle, squeezed, 1, bias=False), nn.ReLU(inplace=True)
            )
            self.branches = nn.ModuleList(nn.Conv2d(squeezed, middle, 1) for _ in range(2))
        for block in (self.enter, self.leave):
            weight = block[0].weight
            assert isinstance(weight, Tensor)
            nn.init.kaiming_uniform_(weight, a=1)  # train/CSF.py:SK.__init__

    def forward(self, stage: Tensor, deeper: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(o_i, r_i): (B, D_i, h_i, w_i) and (B, M, h_i, w_i), of F_i (B, C_i, h_i, w_i) and r_(i+1)."""
        mixed = self.enter(stage)
        if self.fuse:
            assert deeper is not None
            deeper = F.interpolate(deeper, mixed.shape[2:], mode="nearest")
            whole = (mixed + deeper).mean((2, 3), keepdim=True)
            vector = self.squeeze_alone(whole) if len(stage) == 1 else self.squeeze(whole)
            own, other = torch.stack([branch(vector) for branch in self.branches]).softmax(0)
            mixed = own * mixed + other * deeper
        return self.leave(mixed), mixed


class CrossSelectiveFusion(nn.Module):
    """CSF: every stage's map at the teacher's width, with what the deeper stages saw.

    Args:
        inner: C_1 ... C_K, first stage first.
        outer: D_1 ... D_K.
        middle: M.

    Source: RuipingL/TransKD@39ab795 train/CSF.py:SKF.
    """

    def __init__(self, inner: Sequence[int], outer: Sequence[int], middle: int) -> None:
        super().__init__()
        last = len(inner) - 1
        self.stages = nn.ModuleList(
            SelectiveFusion(mine, middle, theirs, fuse=place < last)
            for place, (mine, theirs) in enumerate(zip(inner, outer, strict=True))
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """o_1 ... o_K, (B, D_i, h_i, w_i) each, of F_1 ... F_K, (B, C_i, h_i, w_i) each."""
        fused: list[Tensor] = []
        deeper: Tensor | None = None
        for stage, map_ in zip(reversed(self.stages), reversed(maps), strict=True):
            out, deeper = stage(map_, deeper)
            fused.append(out)
        return fused[::-1]


class StageProjections(nn.Module):
    """What CSF is held against: a 1 x 1 convolution for each stage by itself.

    Args:
        inner: C_1 ... C_K.
        outer: D_1 ... D_K.
    """

    def __init__(self, inner: Sequence[int], outer: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Conv2d(mine, theirs, 1) for mine, theirs in zip(inner, outer, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, D_i, h_i, w_i) each, of maps (B, C_i, h_i, w_i)."""
        return [stage(map_) for stage, map_ in zip(self.stages, maps, strict=True)]
