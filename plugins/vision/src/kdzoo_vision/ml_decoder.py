"""ML-Decoder: one query a label reads the image's feature map; gives a vector and a logit per label.

Ridnik et al., WACV 2023, arXiv:2111.12933, as Multi-Label Knowledge Distillation (arXiv:2308.06453; card `l2d`, C1)
uses it: one decoder layer, no self-attention among queries, queries fixed at random and never trained.

Shapes: N images, F channels of the map, S = H x W places, Q queries, C labels, D width of a label's embedding,
h heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdzoo.errors import KdzooError
from kdzoo.method import Output
from kdzoo_vision.nets import ImageModel


class MLDecoder(nn.Module):
    """Cross-attention from fixed queries to the map, then one small linear classifier a label.

        tokens = ReLU(W map + b); t = LN(q); t = LN(t + attention(t, tokens)); e = LN(t + FFN(t))
        logit_c = <e_g(c), w_c> + b_c, where query g(c) = c // ceil(C / Q)

    Args:
        features: F.
        labels: C.
        width: D, a multiple of `heads`.
        hidden: width of the FFN.
        heads: h.
        groups: Q; None for one query a label, which is what a label-wise embedding needs.
        dropout: on queries, attention weights and both residual branches, in training.

    Source: penghui-yang/L2D@ea7fa55 models/ml_decoder.py (D 768, FFN 2048, 8 heads, dropout 0.1; Q = min(C, 100)).
    """

    queries: Tensor
    scale: Tensor

    def __init__(
        self,
        features: int,
        labels: int,
        *,
        width: int = 768,
        hidden: int = 2048,
        heads: int = 8,
        groups: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % heads:
            raise KdzooError(
                f"ML-Decoder: width {width} and {heads} heads given, a multiple expected: each head takes an equal "
                f"share of the width. Set label_dim to {max(1, round(width / heads)) * heads}, or other heads."
            )
        queries = labels if groups is None else groups
        if not 1 <= queries <= labels:
            raise KdzooError(
                f"ML-Decoder: {queries} queries for {labels} labels given, 1 to {labels} expected: more would answer "
                "for no label. Set fewer groups."
            )
        self.heads, self.labels, self.dropout = heads, labels, dropout
        self.tokens = nn.Linear(features, width)
        self.register_buffer("queries", torch.randn(queries, width))
        # One a head: weights trained with another number of heads have the same shapes, and must not load in silence.
        self.register_buffer("scale", torch.full((heads, 1, 1), (width // heads) ** -0.5))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.merge = nn.Linear(width, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.shrink = nn.Linear(hidden, width)
        self.weight = nn.Parameter(torch.empty(queries, width, -(-labels // queries)))
        self.bias = nn.Parameter(torch.zeros(labels))
        for projection in (self.query.weight, *self.key_value.weight.chunk(2)):
            nn.init.xavier_uniform_(projection)
        for linear in (self.query, self.key_value, self.merge):
            nn.init.zeros_(linear.bias)
        nn.init.xavier_normal_(self.weight)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(N, F, H, W) -> embeddings (N, Q, D) and logits (N, C)."""
        dropout = self.dropout if self.training else 0.0
        count, heads = len(maps), self.heads
        tokens = F.relu(self.tokens(maps.flatten(2).transpose(1, 2)))
        # Without dropout all images start from the same queries: they are normalised and projected once.
        start = self.queries.unsqueeze(0)
        if dropout:
            start = start.expand(count, -1, -1)
            start = start + F.dropout(start, dropout)
        else:
            start = 2 * start
        start = self.norm1(start)
        query = self.query(start).unflatten(2, (heads, -1)).transpose(1, 2)
        key, value = (
            part.unflatten(2, (heads, -1)).transpose(1, 2) for part in self.key_value(tokens).chunk(2, dim=2)
        )
        # Written out: torch's fused kernels are made for long sequences, and take twice as long on a map of
        # 4 x 4 places on a CPU. N x h x Q x S numbers.
        weights = (query @ (key * self.scale).transpose(2, 3)).softmax(3)
        read = F.dropout(weights, dropout, training=dropout > 0) @ value
        read = self.merge(read.transpose(1, 2).flatten(2))
        states = self.norm2(start + F.dropout(read, dropout, training=dropout > 0))
        more = self.shrink(F.dropout(F.relu(self.expand(states)), dropout, training=dropout > 0))
        embeddings = self.norm3(states + F.dropout(more, dropout, training=dropout > 0))
        if self.weight.shape[2] == 1:
            logits = (embeddings * self.weight.squeeze(2)).sum(2)
        else:
            logits = torch.einsum("nqd,qdk->nqk", embeddings, self.weight).flatten(1)[:, : self.labels]
        return embeddings, logits + self.bias


class LabelModel(nn.Module):
    """A backbone without its classifier, and an ML-Decoder on its last map.

    `Output.logits` (N, C) are one binary problem a label, `embedding` is the backbone's pooled feature, and
    ``extra["labels"]`` holds the label-wise embeddings (N, C, D), absent where labels share queries.
    """

    def __init__(
        self, backbone: ImageModel, labels: int, image: tuple[int, int, int], **options: object
    ) -> None:
        super().__init__()
        self.backbone = backbone
        modes = backbone.training
        with torch.no_grad():  # batch norm's statistics do not move in eval
            maps = _last_map(backbone.eval()(torch.zeros(1, *image)))
        backbone.train(modes)
        self.decoder = MLDecoder(maps.shape[1], labels, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Output:
        output: Output = self.backbone(x)
        embeddings, output.logits = self.decoder(_last_map(output))
        if embeddings.shape[1] == output.logits.shape[1]:
            output.extra["labels"] = embeddings
        return output


def _last_map(output: Output) -> Tensor:
    """The deepest stage's activation, (N, F, H, W)."""
    stages = [name for name in output.features if name.startswith("stage")]
    if not stages or output.features[stages[-1]].dim() != 4:
        raise KdzooError(
            "ML-Decoder needs a backbone whose last stage is a map (N, F, H, W); this one has "
            f"{', '.join(output.features) or 'none'}. Choose a conv net, or a timm model with stages."
        )
    return output.features[stages[-1]]
