"""Labels as one more input channel: how they are coded and noised, and a net that takes them.

Shou et al., Make a Strong Teacher with Label Assistance, ECCV 2024, arXiv:2407.13254.

Shapes: B images, I input channels, H x W pixels, K classes; a label that is to be ignored is a symbol of its own, so
there are K + 1 symbols.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.method import Output
from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.models import Segmentor, first_convolution

VOC = 21  # classes, background among them


def code_table(classes: int) -> Tensor:
    """One fixed code a symbol, evenly spaced around 0: ``code(k) = (k - (K + 1) / 2) / h``.

    h is 10 for the 21 classes of VOC, as in the official code, and K / 2 for other numbers.

    Args:
        classes: K >= 1.

    Returns:
        (K + 1,), the last one that of the ignored pixels; about -1 to 1.

    Source: skyshoumeng/Label_Assisted_Distillation@cd08406 train_baseline.py, VOC only; K / 2 is ours.
    """
    half = 10.0 if classes == VOC else classes / 2
    return (torch.arange(classes + 1) - (classes + 1) / 2) / half


def random_codes(images: int, classes: int, generator: torch.Generator) -> Tensor:
    """Codes drawn anew for every image and symbol, ``r_jk ~ N(0, 1)``: a value tells nothing of the class's name.

    Args:
        images: B.
        classes: K.
        generator: of the draws; the codes lie on its device.

    Returns:
        (B, K + 1).
    """
    return torch.randn(images, classes + 1, generator=generator, device=generator.device)


def label_channel(
    labels: Tensor, codes: Tensor, *, noise: float, scale: float, generator: torch.Generator
) -> Tensor:
    """The labels as a picture: ``m_jp = scale * (code_j(Y_jp) + noise * n_jp)``, n ~ N(0, 1) a pixel.

    Args:
        labels: (B, H, W) int64, 0 to K - 1, or 255 where nothing counts.
        codes: (K + 1,) for all images, or (B, K + 1).
        noise: sigma >= 0; at 0 nothing is drawn.
        scale: brings the codes to the range of the image's channels.
        generator: of the pixels' noise.

    Returns:
        (B, 1, H, W) float32.

    Raises:
        ValueError: a label that has no code, or codes of another number of images.

    Source: skyshoumeng/Label_Assisted_Distillation@cd08406 train_baseline.py: noise 0.03, scale 100.
    """
    classes, ignored = codes.shape[-1] - 1, labels == IGNORE
    counted = labels[~ignored]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        raise ValueError(
            f"labels: got {int(counted.min())} to {int(counted.max())}, expected 0 to {classes - 1} or {IGNORE}: "
            "the rest has no code"
        )
    if codes.dim() == 2 and len(codes) != len(labels):
        raise ValueError(f"codes: got rows for {len(codes)} images, expected {len(labels)}, one an image")
    symbols = labels.masked_fill(ignored, classes)
    rows = codes.to(labels.device).expand(len(labels), -1)
    channel = rows.gather(1, symbols.flatten(1)).view(labels.shape)
    if noise:
        channel = channel + noise * torch.randn(labels.shape, generator=generator, device=labels.device)
    return scale * channel.unsqueeze(1)


class LabelInput(nn.Module):
    """A net with one more input channel, for labels; an image that comes without gets zeros there.

    Attributes:
        segmentor: the net, of I + 1 channels.
        channels: I.
    """

    def __init__(self, segmentor: Segmentor, channels: int) -> None:
        super().__init__()
        self.segmentor, self.channels = segmentor, channels

    def forward(self, image: Tensor) -> Output:
        given = image.shape[1]
        if given not in (self.channels, self.channels + 1):
            raise KdzooError(
                f"an image of {given} channels for a net with a label channel, expected {self.channels}, or "
                f"{self.channels + 1} with the labels in the last one: other channels would be read as labels."
            )
        if given == self.channels:
            image = F.pad(image, (0, 0, 0, 0, 0, 1))
        said: Output = self.segmentor(image)
        return said


def with_label_input(model: Segmentor, channels: int, *, init: float) -> LabelInput:
    """The same net, weights included, with a label channel of random weights, drawn from torch's generator.

    Args:
        model: takes I channels; its first convolution is replaced.
        channels: I.
        init: standard deviation of the label channel's weights.

    Source: skyshoumeng/Label_Assisted_Distillation@cd08406, a line of the loader that is commented out: 1e-4, beside
    pretrained weights.
    """
    backbone = model.net.backbone
    assert isinstance(backbone, nn.Module)
    old = _first(backbone)
    first_convolution(backbone, channels + 1)
    new = _first(backbone)
    with torch.no_grad():
        new.weight[:, :channels] = old.weight
        new.weight[:, channels:].normal_(std=init)
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias)
    return LabelInput(model, channels)


def _first(backbone: nn.Module) -> nn.Conv2d:
    return next(part for part in backbone.modules() if isinstance(part, nn.Conv2d))
