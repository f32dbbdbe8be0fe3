"""Areas, borders, calibration: by hand, against slow references, and over empty sets."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from kdzoo_segmentation.measures import BINS, IGNORE, Areas, Borders, Calibration, band, rim
from kdzoo_segmentation.segmentation import Scores

TRUTH = torch.tensor([[[0, 0, 1], [0, 2, 1], [255, 2, 1]]])
SAID = torch.tensor([[[0, 1, 1], [0, 2, 2], [1, 2, 1]]])


def random_labels(seed: int, classes: int = 3, size: tuple[int, int, int] = (2, 9, 11)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, classes, (size[0], 4, 4), generator=generator).float()
    labels = torch.nn.functional.interpolate(coarse[:, None], size[1:], mode="nearest").squeeze(1).long()
    labels[torch.rand(size, generator=generator) < 0.1] = IGNORE
    return labels


def test_areas_by_hand() -> None:
    """A pixel to be ignored that counts after all, or rows and columns of the confusion swapped."""
    found = Areas(4)
    found.add(SAID, TRUTH)
    assert found.total[0].tolist() == [2, 2, 2, 0]
    assert found.total[1].tolist() == [3, 4, 3, 0]
    assert found.iou[:3].tolist() == pytest.approx([2 / 3, 2 / 4, 2 / 3])
    assert found.iou[3].isnan()
    assert found.mean_iou() == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    assert found.mean_iou([1, 3]) == pytest.approx(0.5)
    assert found.pixel_accuracy == pytest.approx(6 / 8)
    assert found.mean_accuracy == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_images_are_summed_before_they_are_divided() -> None:
    """A mean of the images' IoU is another number: a class that is absent from most images would weigh alike."""
    whole, parts = Areas(3), Areas(3)
    said, truth = random_labels(0).where(random_labels(0) != IGNORE, 0), random_labels(1)
    whole.add(said, truth)
    for image in range(2):
        parts.add(said[image : image + 1], truth[image : image + 1])
    assert torch.equal(whole.total, parts.total)


def test_nothing_counts() -> None:
    """0 or 1 where there is nothing to measure."""
    labels = torch.full((1, 3, 3), IGNORE)
    areas, borders, calibration = Areas(2), Borders(2, 1), Calibration()
    areas.add(torch.zeros(1, 3, 3, dtype=torch.int64), labels)
    borders.add(torch.zeros(1, 3, 3, dtype=torch.int64), labels)
    calibration.add(torch.full((1, 2, 3, 3), 0.5), labels)
    found = [areas.mean_iou(), areas.pixel_accuracy, areas.mean_accuracy, borders.mean_iou, calibration.error]
    assert found == [None] * 5


@pytest.mark.parametrize("width", [1, 2, 3])
def test_band_is_the_definition(width: int) -> None:
    """A band on one side of a border only, along the image's edge, or around pixels that are ignored."""
    labels = random_labels(width)
    found = band(labels, width)
    for image, y, x in itertools.product(*map(range, labels.shape)):
        here = labels[image, y, x]
        around = labels[image, max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        near = bool(((around != here) & (around != IGNORE)).any()) and here != IGNORE
        assert bool(found[image, y, x]) == bool(near)


def test_one_class_has_no_border() -> None:
    assert not band(torch.ones(1, 4, 4, dtype=torch.int64), 2).any()


@pytest.mark.parametrize("width", [1, 2])
def test_rim_is_the_definition(width: int) -> None:
    """Pixels of a mask that see something else within the width; outside of the image is something else."""
    masks = (random_labels(5) == 1).unsqueeze(1)
    found = rim(masks, width)
    _, _, height, wide = masks.shape
    for image, y, x in itertools.product(range(2), range(height), range(wide)):
        around = [
            0 <= y + dy < height and 0 <= x + dx < wide and bool(masks[image, 0, y + dy, x + dx])
            for dy, dx in itertools.product(range(-width, width + 1), repeat=2)
        ]
        assert bool(found[image, 0, y, x]) == (bool(masks[image, 0, y, x]) and not all(around))


def test_boundary_iou_sees_what_iou_hides() -> None:
    """A large square that is off by one pixel: nearly right by area, half wrong by contour."""
    truth = torch.zeros(1, 40, 40, dtype=torch.int64)
    truth[:, 5:35, 5:35] = 1
    said = truth.roll(1, 2)
    areas, borders = Areas(2), Borders(2, 1)
    areas.add(said, truth)
    borders.add(said, truth)
    assert areas.iou[1] > 0.9
    # Two of four sides of the contour lie elsewhere; of 116 pixels 58 are shared: the upper and the lower side's 29.
    assert borders.total[:, 1].tolist() == [58, 174]


def test_calibration_is_core_s() -> None:
    """Another binning than core's would make two benches' ece different quantities."""
    from kdzoo.metrics import expected_calibration_error

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, generator=generator)
    truth = torch.randint(0, 4, (2, 5, 6), generator=generator)
    truth[0, 0] = IGNORE
    found = Calibration()
    for image in range(2):
        found.add(logits[image : image + 1].softmax(1), truth[image : image + 1])
    kept = truth != IGNORE
    flat = logits.permute(0, 2, 3, 1)[kept]
    expected = expected_calibration_error(flat, truth[kept], axis=1, bins=BINS)
    assert found.error == pytest.approx(float(expected), abs=1e-6)


def test_scores_of_a_perfect_student_and_of_an_uncertain_one() -> None:
    """Each name stands for its quantity: entropy near borders, agreement with a teacher, and what validation shows."""
    truth = random_labels(3)
    sure = torch.nn.functional.one_hot(truth.where(truth != IGNORE, 0), 3).permute(0, 3, 1, 2).float() * 50
    score = Scores(3, 1, True)
    score.add(sure, truth)
    score.compare(sure, sure.roll(1, 1), truth)
    found = score.values()
    for name in ("miou", "miou[edge2]", "miou[interior2]", "boundary_iou", "pixel_accuracy", "mean_accuracy"):
        assert found[name] == 1
    assert found["agreement"] == 0
    assert found["teacher_kl"] == pytest.approx(50, rel=1e-4)
    assert found["ece"] == pytest.approx(0, abs=1e-6)
    unsure = Scores(3, 1, True)
    unsure.add(torch.zeros(2, 3, 9, 11), truth)
    for name in ("entropy[edge2]", "entropy[interior2]", "nll"):
        assert unsure.values()[name] == pytest.approx(1.0986, abs=1e-4)
    assert "agreement" not in unsure.values()
    brief = Scores(3, 1, False)
    brief.add(sure, truth)
    assert set(brief.values()) == {"miou", "pixel_accuracy", "mean_accuracy"}
