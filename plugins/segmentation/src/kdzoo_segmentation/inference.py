"""Scores of images that are larger than what a model was trained on: windows that overlap.

Shapes: B images, I channels, C classes, H x W pixels; a window has h x w.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from kdzoo.runs import as_output


def slide(module: nn.Module, image: Tensor, window: tuple[int, int], share: float) -> Tensor:
    """Mean of the scores of all windows over a pixel (mmseg's `EncoderDecoder.slide_inference`).

    The last window of each row and column is moved back to end at the image's edge; a side shorter than the window's
    is shown whole.

    Args:
        module: (B, I, h, w) in, an `Output` with logits (B, C, h, w) out.
        image: (B, I, H, W).
        window: (h, w), pixels.
        share: distance of two windows as a share of their side, in (0, 1]; rounded up to whole pixels.

    Returns:
        (B, C, H, W).
    """
    height, width = image.shape[2:]
    total: Tensor | None = None
    count = image.new_zeros(1, 1, height, width)
    for top in _starts(height, window[0], share):
        for left in _starts(width, window[1], share):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            logits = as_output(module(image[:, :, rows, columns])).logits
            assert logits is not None
            if total is None:
                total = logits.new_zeros(len(image), logits.shape[1], height, width)
            total[:, :, rows, columns] += logits
            count[:, :, rows, columns] += 1
    assert total is not None
    return total / count


def _starts(side: int, window: int, share: float) -> list[int]:
    """First pixels of the windows along a side."""
    if side <= window:
        return [0]
    stride = max(1, math.ceil(share * window - 1e-6))  # 2/3 of 768 is 512, whatever the float says
    steps = math.ceil((side - window) / stride)
    return [min(k * stride, side - window) for k in range(steps + 1)]
