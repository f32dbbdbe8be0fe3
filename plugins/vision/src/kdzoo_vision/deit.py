"""Vision transformers with a class token and a distillation token (DeiT, Touvron et al. 2021, arXiv:2012.12877).

Shapes: B images, C classes, D token width, h x w patches (row-major), F = D the pooled width.

    features    stage1 (B, D, h, w) ... patch tokens after blocks; pooled (B, D), the class token after the last norm
    extra       what each head says: "cls" (B, C) class head on the class token, "dist" (B, C) distillation head on the
                distillation token, "dense" (B, C, h, w) one linear head on every patch token
    logits      in training those of the class token, which the task's own loss acts on; in evaluation the mean of the
                heads that `inference` names ("dense" averaged over the patches first)

A head that nothing trains speaks at random, so `inference` is the class token alone unless a method says otherwise.
In evaluation only the heads that are named are computed: what ships is sized and timed without the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdzoo.method import Output
from kdzoo_vision.nets import ImageModel, Shape
from kdzoo_vision.timm_nets import patch_of

HEADS = ("cls", "dist", "dense")
PREFIX = 2  # class and distillation token stand before the patches


class DistilledViT(ImageModel):
    """timm's distilled vision transformer, with a distillation head that also reads every patch.

    Attributes:
        inference: the heads whose mean is `Output.logits` in evaluation, some of "cls", "dist", "dense".
        dense_head: whose linear map reads the patches: "dist" (arXiv:2307.08500) or "cls".
    """

    def __init__(self, model: Any, heads: dict[str, Any]):
        super().__init__(
            int(model.embed_dim), heads["num_classes"], heads["embedding_dim"], heads["normalize"]
        )
        self.model = model
        blocks = len(model.blocks)
        self.indices = [blocks * k // 4 - 1 for k in range(1, 5)] if blocks > 6 else list(range(blocks))
        self.inference: tuple[str, ...] = ("cls",)
        self.dense_head = "dist"

    def forward(self, x: Tensor) -> Output:
        tokens, maps = self.model.forward_intermediates(x, indices=self.indices)
        features = {f"stage{k}": tokens_map for k, tokens_map in enumerate(maps, 1)}
        said: dict[str, Tensor] = {}
        logits = None
        if self.num_classes:
            wanted = HEADS if self.training else self.inference
            said = {name: self._head(name, tokens, maps[-1].shape[2:]) for name in wanted}
            parts = [said["cls"]] if self.training else [_whole(said[name]) for name in wanted]
            logits = parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)
        output = self.output(features, tokens[:, 0], logits)
        output.extra = said
        return output

    def _head(self, name: str, tokens: Tensor, grid: torch.Size) -> Tensor:
        if name == "cls":
            return self.model.head(tokens[:, 0])
        if name == "dist":
            return self.model.head_dist(tokens[:, 1])
        head = self.model.head_dist if self.dense_head == "dist" else self.model.head
        return head(tokens[:, PREFIX:]).transpose(1, 2).unflatten(2, grid)


def _whole(logits: Tensor) -> Tensor:
    """(B, C): dense logits averaged over the patches, others as they are."""
    return logits.mean((2, 3)) if logits.dim() == 4 else logits


def deit(
    shape: Shape,
    dim: int = 48,
    depth: int = 3,
    heads: int = 3,
    mlp_ratio: float = 2.0,
    patch: int | None = None,
) -> DistilledViT:
    """A small DeiT with learned position embeddings; the default patch gives about 4 x 4 patches.

    So few, since the cost of a step grows with their number: with 7 x 7 a step on a CPU takes more than twice the time.
    """
    from timm.models.deit import VisionTransformerDistilled

    patch = patch_of("deit", shape, dim, heads, patch, across=4)
    model = VisionTransformerDistilled(
        img_size=shape.image_size,
        patch_size=patch,
        in_chans=shape.in_channels,
        num_classes=shape.heads["num_classes"] or 0,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_ratio,
    )
    return DistilledViT(model, shape.heads)


def timm_deit(shape: Shape, model: str) -> DistilledViT:
    """One of timm's ``deit_*_distilled_*`` models from random weights, with all three heads."""
    import timm

    net = timm.create_model(
        model,
        num_classes=shape.heads["num_classes"] or 0,
        in_chans=shape.in_channels,
        img_size=shape.image_size,
    )
    return DistilledViT(net, shape.heads)
