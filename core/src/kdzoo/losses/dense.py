"""Logits at every position of a feature map, and losses on them.

Legend: B items, F channels, C classes, H x W positions of the teacher's map, h x w of the student's; class axis 1.

A net that ends in global average pooling and a linear classifier has an opinion at every position: the classifier
applied before the pooling. Pooling and classifier are both affine, so the mean of these dense logits is the net's own
logits, if the bias is applied at each position.

Not here: nets whose head is not linear, maps of different content (segmentation).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdzoo.losses.divergences import check_pair, kl_divergence
from kdzoo.losses.masks import Reduction, reduce


def dense_logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The classifier at every position: ``z_bcyx = sum_f w_cf x_bfyx + b_c``, a 1x1 convolution.

    Args:
        features: (B, F, H, W), the last map before global average pooling.
        weight: (C, F), of the linear classifier.
        bias: (C,), or None for a classifier without one.

    Returns:
        (B, C, H, W) logits; their mean over positions is the classifier's answer to the pooled features.

    Raises:
        ValueError: features that are no map, or another number of channels than the classifier reads.

    Source: Zzzzz1/CSKD@fa0d8b8 cskd/models/regnet.py; class activation maps, arXiv 1512.04150, section 2.

    Example:
        >>> import torch
        >>> z = dense_logits(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[2.0]]), torch.tensor([1.0]))
        >>> z.flatten().tolist(), z.mean().item()  # 2 x + 1, and 2 mean(x) + 1
        ([3.0, 7.0], 5.0)
    """
    if features.dim() != 4 or weight.dim() != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"features: got {tuple(features.shape)} for a classifier {tuple(weight.shape)}, expected (B, F, H, W) and "
            "(C, F): the classifier would read something else than what it was trained on"
        )
    return F.conv2d(features, weight[:, :, None, None], bias)


def pool_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Average dense logits over the cells of a coarser grid.

    Where h and w are multiples of H and W these are plain blocks; else neighbouring cells share positions
    (``F.adaptive_avg_pool2d``: cell k covers positions floor(k h / H) to ceil((k + 1) h / H)).

    Args:
        logits: (B, C, h, w).
        size: (H, W), H <= h and W <= w.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: a finer grid than there is; one position would be copied into several cells, each with its own
            target.

    Source: Zzzzz1/CSKD@fa0d8b8 cskd/cskd.py:CSKDLoss.align_stu_logits pools 14 x 14 to 7 x 7.

    Example:
        >>> import torch
        >>> pool_logits(torch.tensor([[[[1.0, 3.0, 5.0, 7.0]]]]), (1, 2)).flatten().tolist()
        [2.0, 6.0]
    """
    if logits.dim() != 4:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected (B, C, h, w)")
    height, width = logits.shape[2:]
    if not (1 <= size[0] <= height and 1 <= size[1] <= width):
        raise ValueError(
            f"size: got {tuple(size)} for logits on a grid of {height} x {width}, expected at most that many cells; "
            "one position would be copied into several cells that have different targets"
        )
    return logits if (height, width) == tuple(size) else F.adaptive_avg_pool2d(logits, size)


def hard_label_loss(student_logits: Tensor, teacher_logits: Tensor, *, reduction: Reduction) -> Tensor:
    """Cross-entropy with the teacher's most probable class, averaged over positions where there are some.

    ``l_b = mean over positions of -log softmax(s_b)[argmax_c t_bc]``. Not a divergence: it is not 0 at equality.

    Args:
        student_logits: (B, C), or (B, C, H, W).
        teacher_logits: the same shape; detached. Ties: the lowest class.
        reduction: "none" = one value per item, "mean" or "sum" over items.

    Returns:
        (B,) or scalar; nats.

    Raises:
        ValueError: unequal shapes, no class, unknown reduction.

    Source: arXiv 2012.12877, equation 3; Zzzzz1/CSKD@fa0d8b8 cskd/cskd.py, both "hard" losses.

    Example:
        >>> import torch
        >>> loss = hard_label_loss(torch.zeros(1, 4), torch.tensor([[0.0, 9.0, 0.0, 0.0]]), reduction="mean")
        >>> round(loss.item(), 4)  # log 4
        1.3863
    """
    check_pair(student_logits, teacher_logits, 1.0, 1, reduction, None)
    values = F.cross_entropy(student_logits, teacher_logits.detach().argmax(1), reduction="none")
    return reduce(values.flatten(1).mean(1) if values.dim() > 1 else values, reduction=reduction)


def soft_dense_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, reduction: Reduction
) -> Tensor:
    """KL(teacher || student) at temperature T, summed over the positions of an item, times T^2.

    ``l_b = T^2 sum_yx KL(softmax(t_byx / T) || softmax(s_byx / T))``

    Args:
        student_logits: (B, C, H, W).
        teacher_logits: the same shape; detached.
        temperature: T > 0.
        reduction: "none" = one value per item, "mean" or "sum" over items.

    Returns:
        (B,) or scalar, >= 0; nats. H x W times as large as a mean over positions, as in the official code.

    Raises:
        ValueError: unequal shapes, no map, temperature <= 0, unknown reduction.

    Source: Zzzzz1/CSKD@fa0d8b8 cskd/cskd.py:CSKDLoss.get_loss_cskd, "soft".

    Example:
        >>> import torch
        >>> same = torch.randn(2, 3, 4, 4)
        >>> soft_dense_loss(same, same, temperature=1.0, reduction="mean").item()
        0.0
    """
    if student_logits.dim() != 4:
        raise ValueError(f"student_logits: got shape {tuple(student_logits.shape)}, expected (B, C, H, W)")
    values = kl_divergence(student_logits, teacher_logits, temperature=temperature, axis=1, reduction="none")
    return reduce(values.flatten(1).sum(1) * temperature**2, reduction=reduction)
