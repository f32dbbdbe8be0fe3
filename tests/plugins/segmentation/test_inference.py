"""Windows over large images."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from kdzoo_segmentation import models
from kdzoo_segmentation.inference import slide


class Identity(nn.Module):
    """The image as scores, and how often each window was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append((image.shape[2], image.shape[3]))
        return image


@pytest.mark.parametrize(
    ("size", "window", "share", "windows"),
    [
        ((7, 9), (4, 4), 0.5, 3 * 4),
        ((4, 4), (4, 4), 1.0, 1),
        ((3, 9), (4, 4), 1.0, 3),
        ((3, 2), (8, 8), 0.3, 1),
        ((768, 6), (384, 6), 2 / 3, 3),
        ((5, 5), (1, 1), 0.01, 25),
    ],
)
def test_every_pixel_is_a_mean(
    size: tuple[int, int], window: tuple[int, int], share: float, windows: int
) -> None:
    """A pixel that no window shows, or one that is summed instead of averaged."""
    image, net = torch.randn(2, 3, *size), Identity()
    assert torch.allclose(slide(net, image, window, share), image, atol=1e-6)
    assert len(net.seen) == windows
    assert set(net.seen) == {(min(size[0], window[0]), min(size[1], window[1]))}


@pytest.mark.parametrize("window", [(32, 32), (32, 48), (64, 40)])
def test_it_is_mmsegs(window: tuple[int, int]) -> None:
    """Windows at other places than mmseg's would give other numbers than its model zoo's."""
    torch.manual_seed(0)
    model = models.build("fcn-r18-xs", classes=4).eval()
    image = torch.randn(1, 3, 50, 71)
    steps = tuple(-(-3 * side // 4) for side in window)
    model.net.test_cfg = ConfigDict(mode="slide", crop_size=window, stride=steps)
    with torch.no_grad():
        expected = model.net.slide_inference(image, [{"ori_shape": (50, 71), "img_shape": (50, 71)}])
        assert torch.allclose(slide(model, image, window, 0.75), expected, atol=1e-5)
