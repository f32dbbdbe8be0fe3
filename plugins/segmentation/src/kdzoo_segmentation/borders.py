"""Edges and bodies of classes, from labels: a trimap of dilation and erosion, and what is inside of it.

For a class c with the mask M_c, E_c = dilate(M_c) XOR erode(M_c) is a band on both sides of its border, and
B_c = M_c AND NOT E_c its body. A window that reaches into two classes makes its middle an edge of both, so the union
of all E_c is where a window holds two classes: it is found from the class numbers, without a mask for each class.
Also B_c = M_c AND NOT (union of all E), since a pixel of c near any other class lies in E_c itself.

Pixels to be ignored are no class: they belong to no edge and no body and make no edge around them, as the image's
border makes none.

Shapes: B images, C classes, h x w pixels. Labels are class numbers, or 255 where nothing counts.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo_segmentation.measures import IGNORE, band

Element = Literal["square", "cross"]


def edges(labels: Tensor, *, radius: int, element: Element) -> Tensor:
    """Pixels that lie in the edge of some class: the union of all E_c.

    Args:
        labels: (B, h, w) int64.
        radius: at least 1; reach of dilation and erosion in pixels.
        element: form of the window: "square", or "cross", which is grown `radius` times (a diamond).

    Returns:
        (B, h, w) bool.

    Raises:
        ValueError: radius below 1, unknown element.
    """
    _check(radius, element)
    if element == "square":
        return band(labels, radius)
    kept = labels != IGNORE
    values = labels.float()
    high = _dilate(values.masked_fill(~kept, -torch.inf), radius, element)
    low = -_dilate((-values).masked_fill(~kept, -torch.inf), radius, element)
    return (high != low) & kept


def class_edges(labels: Tensor, *, classes: int, radius: int, element: Element) -> Tensor:
    """E_c of every class; a pixel near a border lies in two or more of them.

    Args:
        labels: (B, h, w) int64, below C or 255.
        classes: C.
        radius, element: as in `edges`.

    Returns:
        (B, C, h, w) bool.
    """
    reach = _dilate(class_masks(labels, classes=classes).float(), radius, element) > 0
    return reach & edges(labels, radius=radius, element=element).unsqueeze(1)


def bodies(labels: Tensor, edge: Tensor, *, classes: int) -> Tensor:
    """B_c of every class: its pixels that lie in no edge.

    Args:
        labels: (B, h, w) int64, below C or 255.
        edge: (B, h, w) bool, of `edges`.
        classes: C.

    Returns:
        (B, C, h, w) bool; all False for a class that the image has not, or only as edge.
    """
    return class_masks(labels.masked_fill(edge, IGNORE), classes=classes)


def class_masks(labels: Tensor, *, classes: int) -> Tensor:
    """M_c of every class: (B, C, h, w) bool of labels (B, h, w)."""
    return labels.unsqueeze(1) == torch.arange(classes, device=labels.device).view(1, -1, 1, 1)


def _dilate(values: Tensor, radius: int, element: Element) -> Tensor:
    """Maximum over the window around each pixel; the image's border adds nothing to it."""
    if element == "square":
        side = 2 * radius + 1
        return F.max_pool2d(F.max_pool2d(values, (1, side), 1, (0, radius)), (side, 1), 1, (radius, 0))
    for _ in range(radius):
        values = torch.maximum(
            F.max_pool2d(values, (1, 3), 1, (0, 1)), F.max_pool2d(values, (3, 1), 1, (1, 0))
        )
    return values


def _check(radius: int, element: str) -> None:
    if radius < 1:
        raise ValueError(f"radius: got {radius}, expected at least 1; without a band there is no edge")
    if element not in get_args(Element):
        raise ValueError(f"element: got {element!r}, expected 'square' or 'cross'")
