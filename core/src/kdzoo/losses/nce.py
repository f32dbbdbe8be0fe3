"""Noise-contrastive estimation: tell one true pair from many drawn at random.

Contrastive Representation Distillation, ICLR 2020, https://arxiv.org/abs/1910.10699 (card `crd`), equations 9 and 18.

Legend: N anchors, K noise pairs an anchor; item = anchor.

Not here: where the pairs come from (a memory of embeddings is state, so it belongs to the method); InfoNCE, which
normalises over the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdzoo.losses.masks import Reduction, check_reduction, reduce

EPSILON = 1e-7  # HobbitLong/RepDistiller@b84f547 crd/criterion.py


def noise_contrastive(
    positives: Tensor,
    negatives: Tensor,
    *,
    data_size: int,
    reduction: Reduction,
    mask: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood of telling the true pair from K pairs drawn uniformly from `data_size` samples.

    ``l_i = - log( h_i0 / (h_i0 + c) ) - sum_k log( c / (h_ik + c) ), c = K / data_size``, h the unnormalised
    probability of a pair.

    Args:
        positives: (N,), h of the true pairs, > 0.
        negatives: (N, K), h of the noise pairs, > 0.
        data_size: number of samples the noise was drawn from, >= 1.
        reduction: "none" = one value per anchor, "mean" or "sum" over the anchors.
        mask: (N, K) bool, True where a noise pair counts; K is then each anchor's own number of pairs.

    Returns:
        (N,) or scalar, > 0, in nats: a likelihood, so not 0 at student = teacher. Float32 or wider.

    Raises:
        TypeError: integer values.
        ValueError: shapes that do not fit, data_size below 1, unknown reduction.

    Source: arXiv 1910.10699 equations 9 and 18; HobbitLong/RepDistiller@b84f547 crd/criterion.py:ContrastLoss (eps =
    1e-7 beside c).

    Example:
        >>> round(noise_contrastive(torch.ones(1), torch.ones(1, 2), data_size=2, reduction="sum").item(), 4)
        2.0794
    """
    check_reduction(reduction)
    if not (positives.is_floating_point() and negatives.is_floating_point()):
        raise TypeError(
            f"positives, negatives: got {positives.dtype} and {negatives.dtype}, expected floating point; "
            "probabilities would be rounded to 0"
        )
    if positives.dim() != 1 or negatives.dim() != 2 or len(positives) != len(negatives):
        raise ValueError(
            f"shapes: got positives {tuple(positives.shape)} and negatives {tuple(negatives.shape)}, expected (N,) and "
            "(N, K); noise of one anchor would be held against another"
        )
    if mask is not None and mask.shape != negatives.shape:
        raise ValueError(
            f"mask: got {tuple(mask.shape)}, expected {tuple(negatives.shape)}, as the negatives"
        )
    if data_size < 1:
        raise ValueError(f"data_size: got {data_size}, expected at least 1, the samples noise was drawn from")
    dtype = torch.promote_types(positives.dtype, torch.float32)
    positives, negatives = positives.to(dtype), negatives.to(dtype)
    if mask is None:
        noise = positives.new_full((len(positives),), negatives.shape[1] / data_size)
    else:
        noise = mask.sum(dim=1).to(dtype) / data_size
    true_pair = (positives / (positives + noise + EPSILON)).log()
    # An anchor all of whose noise is masked has c = 0; its masked pairs must not become log(0) * 0.
    shares = noise.unsqueeze(1) / (negatives + noise.unsqueeze(1) + EPSILON)
    noise_pairs = (shares if mask is None else shares.masked_fill(~mask, 1.0)).log()
    return reduce(-true_pair - noise_pairs.sum(dim=1), reduction=reduction)
