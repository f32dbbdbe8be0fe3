"""The loaders of the paper profiles on data that do not lie, or do not read, as they should."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch

from kdzoo.errors import KdzooError
from kdzoo_vision.data import metric_layouts
from kdzoo_vision.data.photos import DATASETS, check_layout, load
from kdzoo_vision.data.transforms import Recipe

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
import tiny_layouts as tiny

NAMES = sorted(DATASETS)


REQUIRED = [
    ("cub-200-2011", "CUB_200_2011/images.txt"),
    ("cub-200-2011", "CUB_200_2011/image_class_labels.txt"),
    ("cars196", "cars196/cars_annos.mat"),
    ("stanford-online-products", "Stanford_Online_Products/Ebay_train.txt"),
    ("stanford-online-products", "Stanford_Online_Products/Ebay_test.txt"),
    ("cifar-100", "cifar-100-binary/train.bin"),
    ("cifar-100", "cifar-100-binary/test.bin"),
    ("tiny-imagenet", "tiny-imagenet-200/val/val_annotations.txt"),
    ("coco-2014", "coco/annotations/instances_train2014.json"),
    ("coco-2014", "coco/annotations/instances_val2014.json"),
    ("voc-2007", "VOC2007/ImageSets/Main/trainval.txt"),
    ("voc-2007", "VOC2007/ImageSets/Main/test.txt"),
]


@pytest.mark.parametrize(("name", "piece"), REQUIRED)
def test_missing_piece_gives_the_layout(name, piece, tmp_path):
    """A traceback, or a message from which nobody learns what to fetch and where to put it."""
    tiny.WRITERS[name](tmp_path)
    check_layout(name, tmp_path)
    (tmp_path / piece).unlink()
    info = DATASETS[name]
    with pytest.raises(KdzooError) as caught:
        check_layout(name, tmp_path)
    text = str(caught.value)
    assert Path(piece).name in text.splitlines()[0]
    assert info.home in text
    assert info.terms in text
    assert all(line.strip() in text for line in info.layout.splitlines())
    with pytest.raises(KdzooError, match="Expected:"):
        load(name, "train", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_root_may_be_the_folder_itself(name, tmp_path):
    """Insisting on a folder above the one the user has."""
    home = tiny.WRITERS[name](tmp_path)
    renamed = home.rename(tmp_path / "my_data")
    check_layout(name, renamed)
    assert len(load(name, "test", renamed)) > 0
    with pytest.raises(KdzooError, match=r"Found in .*: my_data/"):
        check_layout(name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_no_folder_at_all(name, tmp_path):
    """An OSError for a mistyped data root."""
    with pytest.raises(KdzooError, match="it does not exist"):
        check_layout(name, tmp_path / "nowhere")
    with pytest.raises(KdzooError, match="it is empty"):
        check_layout(name, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(KdzooError, match="a file, not a folder"):
        check_layout(name, tmp_path / "file")


def test_flat_imagenet_validation(tmp_path):
    """An empty test split, or one big class named val."""
    tiny.write_imagenet(tmp_path, flat_val=True)
    with pytest.raises(KdzooError, match="not sorted into classes") as caught:
        check_layout("imagenet-1k", tmp_path)
    assert "parse_val_archive" in str(caught.value)


def test_sorting_advice_names_functions_that_exist():
    """Advice that ends in an ImportError."""
    from torchvision.datasets import imagenet

    assert callable(imagenet.parse_devkit_archive)
    assert callable(imagenet.parse_val_archive)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_cifar_pickle_is_refused(tmp_path):
    """Running whatever somebody put into a pickle."""
    home = tmp_path / "cifar-100-python"
    home.mkdir()
    for part in ("train", "test", "meta"):
        (home / part).write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    for root in (tmp_path, home):
        with pytest.raises(KdzooError, match="pickle") as caught:
            load("cifar-100", "train", root)
        assert "CIFAR-100 binary version" in str(caught.value)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("decoders", [1, 2])
@pytest.mark.parametrize("damage", ["truncated", "noise"])
def test_corrupt_image_is_named(damage, decoders, tmp_path):
    """A grey half image that trains silently, or a traceback without the file's name."""
    tiny.write_cub(tmp_path, size=(200, 200))
    data = load("cub-200-2011", "train", tmp_path, image_size=16, decoders=decoders)
    path = data.items.home / data.ids[1]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"noise" * 100)
    with pytest.raises(KdzooError) as caught:
        data.collate(data.items, torch.arange(len(data)), None)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["cub-200-2011", "imagenet-1k"])
def test_empty_image_is_found_before_training(name, tmp_path):
    """An interrupted unpacking noticed after an hour of training."""
    tiny.WRITERS[name](tmp_path)
    data = load(name, "train", tmp_path)
    (data.items.home / data.ids[0]).write_bytes(b"")
    with pytest.raises(KdzooError, match="missing or have 0 bytes") as caught:
        load(name, "train", tmp_path)
    assert data.ids[0] in str(caught.value)


def test_listed_image_that_is_missing(tmp_path):
    """The same for a file that is listed and not there."""
    home = tiny.write_sop(tmp_path)
    data = load("stanford-online-products", "test", tmp_path)
    (home / data.ids[0]).unlink()
    with pytest.raises(KdzooError, match="1 of 6 images are missing"):
        load("stanford-online-products", "test", tmp_path)


@pytest.mark.parametrize(
    ("name", "split", "arguments"),
    [
        ("cub-200-2011", "test", {"test": ()}),
        ("cub-200-2011", "train", {"train": ()}),
        ("cub-200-2011", "val", {"train": (1,)}),
    ],
)
def test_empty_split_is_explained(name, split, arguments, tmp_path):
    """A division by zero far from its cause."""
    tiny.write_cub(tmp_path, **arguments)
    with pytest.raises(KdzooError, match=f"the {split} split is empty"):
        load(name, split, tmp_path)


def test_no_validation_without_share(tmp_path):
    """A val split that is silently the training split."""
    tiny.write_cifar100(tmp_path)
    with pytest.raises(KdzooError, match="because val_share is 0"):
        load("cifar-100", "val", tmp_path, val_share=0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("1\n", "line 1"),
        ("1 one\n", "line 1"),
        ("1 1\n1 2\n", "line 2"),
        ("999 1\n", "not in images.txt"),
        ("1 1\n", "gives no label to 20 images"),
    ],
)
def test_damaged_label_file(content, problem, tmp_path):
    """Labels shifted against images."""
    home = tiny.write_cub(tmp_path)
    (home / "image_class_labels.txt").write_text(content)
    with pytest.raises(KdzooError, match=problem):
        load("cub-200-2011", "train", tmp_path)


def test_damaged_annotations(tmp_path):
    """scipy's own errors, or a devkit without classes taken for one with."""
    home = tiny.write_cars(tmp_path, devkit=True)
    labelled = home / "cars_test_annos_withlabels.mat"
    labelled.write_bytes((home / "devkit/cars_test_annos.mat").read_bytes())
    with pytest.raises(KdzooError, match="fname and class are needed"):
        load("cars196", "test", tmp_path)
    labelled.write_bytes(b"not a MATLAB file" * 20)
    with pytest.raises(KdzooError, match="cannot be read as annotations"):
        load("cars196", "test", tmp_path)
    labelled.unlink()
    with pytest.raises(KdzooError, match=r"cars_test_annos\.mat has no classes"):
        check_layout("cars196", tmp_path)
    with pytest.raises(ValueError, match="find_cars"):
        metric_layouts.read_cars(home, "test")


@pytest.mark.parametrize("content", [b"", b"x" * 3073, bytes([0, 100]) + bytes(3072)])
def test_damaged_cifar(content, tmp_path):
    """A truncated download, CIFAR-10's file under this name, or labels out of range."""
    home = tiny.write_cifar100(tmp_path)
    (home / "train.bin").write_bytes(content)
    with pytest.raises(KdzooError, match=r"train\.bin"):
        load("cifar-100", "train", tmp_path)


def test_paths_stay_inside(tmp_path):
    """A list that makes the loader read other files of the machine."""
    home = tiny.write_sop(tmp_path)
    (home / "Ebay_train.txt").write_text("image_id class_id super_class_id path\n1 1 1 ../../secret.jpg\n")
    with pytest.raises(KdzooError, match="not a path inside"):
        load("stanford-online-products", "train", tmp_path)


def test_validation_class_without_training_folder(tmp_path):
    """Labels of another order because a training folder is missing."""
    home = tiny.write_imagenet(tmp_path)
    (home / "train/n00000002").rename(tmp_path / "elsewhere")
    with pytest.raises(KdzooError, match="n00000002"):
        load("imagenet-1k", "test", tmp_path)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"val_share": 1.0}, "val_share is 1.0"),
        ({"val_share": -0.1}, "val_share is -0.1"),
        ({"val_share": float("nan")}, "val_share is nan"),
        ({"decoders": 0}, "decoders is 0"),
        ({"image_size": 0}, "image_size is 0"),
        ({"resize": 10}, "the crop would not fit"),
        ({"augment": "zoom"}, "'zoom'"),
        ({"std": (1, 1, 0)}, "std"),
    ],
)
def test_settings_out_of_range(settings, problem, tmp_path):
    """Settings that fail in the middle of an epoch."""
    tiny.write_cub(tmp_path)
    with pytest.raises(KdzooError, match=problem):
        load("cub-200-2011", "train", tmp_path, **settings)


def test_names_and_splits(tmp_path):
    """No suggestion for a mistyped name; an empty pool taken for data."""
    tiny.write_cub(tmp_path)
    with pytest.raises(KdzooError, match="cub-200-2011"):
        load("cub", "train", tmp_path)
    with pytest.raises(KdzooError, match="no split 'pool'"):
        load("cub-200-2011", "pool", tmp_path)
    with pytest.raises(ValueError, match="holdout"):
        load("cub-200-2011", "holdout", tmp_path)


def test_information_is_complete():
    """A data set without the facts that a user needs before a download of 150 GB."""
    assert set(tiny.WRITERS) == set(DATASETS)
    for name, info in DATASETS.items():
        assert info.name == name
        assert info.home.startswith(("http://", "https://"))
        assert info.terms
        assert info.layout.startswith(info.folders[0] + "/")
        assert info.classes > 0
        assert info.gigabytes > 0
    assert Recipe(224, 256, "crop", True, (0, 0, 0), (1, 1, 1)).resize == 256
