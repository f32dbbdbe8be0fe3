"""The data sets of the `paper` profiles: what each one is, where it is had, and how it lies on disk.

Nothing is downloaded or unpacked here: the user gets an archive under its own terms and unpacks it under the
data root. This module imports nothing heavy, so that a command may print a layout without loading torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Channel statistics of the 50,000 CIFAR-100 training images, in units of 255.
CIFAR100_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR100_STD = (0.2675, 0.2565, 0.2761)

Purpose = Literal["metric", "classification", "multi-label"]
Augment = Literal["crop", "area", "strong", "pad", "rand", "none"]


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """One data set and its paper recipe.

    Attributes:
        name: key in `DATASETS`.
        title: name in the literature.
        home: official page.
        terms: licence or terms of use in one line.
        layout: the files expected, as a tree; its first line is the folder under the data root.
        folders: names that this folder may have under the data root.
        classes: classes of the official data (train and test together). A reduced copy may have fewer.
        gigabytes: size when unpacked, about.
        purpose: `metric`: train and test have different classes; `classification`: the same ones; `multi-label`: the
            same ones, several an image.
        image_size: side of the square that models get, in pixels.
        augment: training transform, see `kdzoo_vision.data.transforms`.
        squash: resize to a square, ignoring the aspect ratio, instead of resizing the short side.
        mean, std: RGB normalization constants, in units of 255.
    """

    name: str
    title: str
    home: str
    terms: str
    layout: str
    folders: tuple[str, ...]
    classes: int
    gigabytes: float
    purpose: Purpose
    image_size: int = 224
    augment: Augment = "crop"
    squash: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


CUB = DatasetInfo(
    name="cub-200-2011",
    title="CUB-200-2011",
    home="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    terms="non-commercial research and education only; the photos belong to their photographers",
    layout="""\
CUB_200_2011/
  images.txt               lines "<image id> <class folder>/<file>.jpg"
  image_class_labels.txt   lines "<image id> <class id>", class ids 1 to 200
  images/<class folder>/<file>.jpg
Classes 1-100 train, 101-200 test.""",
    folders=("CUB_200_2011",),
    classes=200,
    gigabytes=1.2,
    purpose="metric",
    squash=True,  # lenscloth/RKD@0a6c3c0 run.py: Resize((256, 256)), which ignores the aspect ratio
)

CARS = DatasetInfo(
    name="cars196",
    title="Cars196 (Stanford Cars)",
    home="https://ai.stanford.edu/~jkrause/cars/car_dataset.html (at times offline)",
    terms="photos gathered from the web, no licence comes with them; treat as non-commercial research only",
    layout="""\
cars196/                             either
  car_ims/<number>.jpg
  cars_annos.mat                     fields relative_im_path, class, test
                                     or
  cars_train/<number>.jpg
  cars_test/<number>.jpg
  devkit/cars_train_annos.mat        fields fname, class
  cars_test_annos_withlabels.mat     here or in devkit/; the devkit's own cars_test_annos.mat has no classes
Classes 1-98 train, 99-196 test; the official train/test mark is not used in metric learning.""",
    folders=("cars196", "stanford_cars"),
    classes=196,
    gigabytes=1.9,
    purpose="metric",
    squash=True,  # as CUB
)

SOP = DatasetInfo(
    name="stanford-online-products",
    title="Stanford Online Products",
    home="https://cvgl.stanford.edu/projects/lifted_struct/",
    terms="see the LICENSE file in the archive; photos come from eBay listings; treat as research only",
    layout="""\
Stanford_Online_Products/
  Ebay_train.txt    header line, then lines "<image id> <class id> <super-class id> <path>"
  Ebay_test.txt     the same, other classes
  <super class>_final/<file>.JPG""",
    folders=("Stanford_Online_Products",),
    classes=22_634,
    gigabytes=2.9,
    purpose="metric",
    squash=True,  # as CUB
)

CIFAR100 = DatasetInfo(
    name="cifar-100",
    title="CIFAR-100",
    home="https://www.cs.toronto.edu/~kriz/cifar.html",
    terms="no licence is stated; the authors ask to cite their technical report (Krizhevsky, 2009)",
    layout="""\
cifar-100-binary/                  the archive named "CIFAR-100 binary version", not the python version
  train.bin    records of 3,074 bytes: coarse label, fine label, 1,024 red, 1,024 green, 1,024 blue
  test.bin     the same
  fine_label_names.txt             optional""",
    folders=("cifar-100-binary",),
    classes=100,
    gigabytes=0.2,
    purpose="classification",
    image_size=32,
    augment="pad",
    mean=CIFAR100_MEAN,
    std=CIFAR100_STD,
)

IMAGENET = DatasetInfo(
    name="imagenet-1k",
    title="ImageNet-1k (ILSVRC 2012)",
    home="https://www.image-net.org/",
    terms="non-commercial research and education only, after accepting the terms of access on the home page",
    layout="""\
imagenet/
  train/<wnid>/<file>.JPEG    one folder a class, named n and 8 digits
  val/<wnid>/<file>.JPEG      sorted into folders, too""",
    folders=("imagenet", "imagenet-1k", "ILSVRC2012"),
    classes=1000,
    gigabytes=150,
    purpose="classification",
    augment="area",
)

TINY_IMAGENET = DatasetInfo(
    name="tiny-imagenet",
    title="Tiny-ImageNet",
    home="http://cs231n.stanford.edu/",
    terms="a subset of ImageNet: its terms hold (non-commercial research and education)",
    layout="""\
tiny-imagenet-200/
  train/<wnid>/images/<file>.JPEG
  val/val_annotations.txt    lines "<file>.JPEG <wnid> <box>", parted by tabs
  val/images/<file>.JPEG
Test is val: the labels of the folder test/ were never published.""",
    folders=("tiny-imagenet-200",),
    classes=200,
    gigabytes=0.5,
    purpose="classification",
    image_size=64,
    augment="pad",
)

COCO = DatasetInfo(
    name="coco-2014",
    title="MS-COCO 2014",
    home="https://cocodataset.org/",
    terms="annotations CC-BY-4.0; the photos belong to their Flickr users, under Flickr's terms of use",
    layout="""\
coco/
  annotations/instances_train2014.json
  annotations/instances_val2014.json
  train2014/<file>.jpg
  val2014/<file>.jpg
Test is val2014. Images without an object are left out.""",
    folders=("coco", "COCO", "coco2014", "mscoco"),
    classes=80,
    gigabytes=20,
    purpose="multi-label",
    augment="rand",
    squash=True,  # penghui-yang/L2D@ea7fa55: Resize((224, 224)), which ignores the aspect ratio
    mean=(0.0, 0.0, 0.0),  # the same: ToTensor alone
    std=(1.0, 1.0, 1.0),
)

VOC = DatasetInfo(
    name="voc-2007",
    title="PASCAL VOC 2007",
    home="http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
    terms="the photos are Flickr's, under its terms of use; research use is customary",
    layout="""\
VOCdevkit/VOC2007/
  ImageSets/Main/trainval.txt             lines "<image>"
  ImageSets/Main/test.txt                 the same
  ImageSets/Main/<class>_trainval.txt     lines "<image> <1, 0 or -1>"
  ImageSets/Main/<class>_test.txt         the same
  JPEGImages/<image>.jpg""",
    folders=("VOCdevkit/VOC2007", "VOC2007"),
    classes=20,
    gigabytes=0.9,
    purpose="multi-label",
    augment="rand",
    squash=True,  # as COCO
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)

DATASETS: dict[str, DatasetInfo] = {
    info.name: info for info in (CUB, CARS, SOP, CIFAR100, IMAGENET, TINY_IMAGENET, COCO, VOC)
}


def find_home(info: DatasetInfo, root: Path, accepts: Callable[[Path], bool]) -> Path | None:
    """The folder of the data set: a named folder under `root` that `accepts`, or `root` itself, or None."""
    candidates: Sequence[Path] = [*(root / folder for folder in info.folders), root]
    return next((place for place in candidates if accepts(place)), None)
