"""Public sets of labelled photos: where they are had, on which terms, and how their files are to lie.

One `PhotoSet` a data set of the `paper` profiles. `find` looks for it under the data root. Nothing heavy is imported
here, so that a command may print a layout without loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdzoo.data_layout import layout_error
from kdzoo.errors import unknown


@dataclass(frozen=True, slots=True)
class PhotoSet:
    """One data set.

    Attributes:
        name: key in `PHOTO_SETS`.
        title: name in the literature.
        home: official page.
        terms: licence or terms of use in one line.
        layout: the files expected, as a tree; its first line is the folder under the data root.
        folders: names that this folder may have under the data root.
        needed: files and folders without which it cannot be read.
        gigabytes: size when unpacked, about.
    """

    name: str
    title: str
    home: str
    terms: str
    layout: str
    folders: tuple[str, ...]
    needed: tuple[str, ...]
    gigabytes: float


CITYSCAPES = PhotoSet(
    name="cityscapes",
    title="Cityscapes",
    home="https://www.cityscapes-dataset.com/",
    terms="non-commercial research and education only, after registration on the home page",
    layout="""\
cityscapes/                          leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip
  leftImg8bit/train/<city>/<frame>_leftImg8bit.png
  leftImg8bit/val/<city>/<frame>_leftImg8bit.png
  gtFine/train/<city>/<frame>_gtFine_labelTrainIds.png
  gtFine/val/<city>/<frame>_gtFine_labelTrainIds.png
The files *_labelTrainIds.png are made by csCreateTrainIdLabelImgs (pip install cityscapesscripts).
Test is val: the labels of the official test part are not public.""",
    folders=("cityscapes", "Cityscapes"),
    needed=("leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val"),
    gigabytes=12,
)

ADE20K = PhotoSet(
    name="ade20k",
    title="ADE20K (SceneParse150)",
    home="http://sceneparsing.csail.mit.edu/",
    terms="images: non-commercial research and education only; annotations and software: BSD-3-Clause",
    layout="""\
ADEChallengeData2016/
  images/training/<image>.jpg
  images/validation/<image>.jpg
  annotations/training/<image>.png      0 is no class, 1 to 150 are classes
  annotations/validation/<image>.png
Test is validation.""",
    folders=("ADEChallengeData2016", "ade/ADEChallengeData2016"),
    needed=("images/training", "images/validation", "annotations/training", "annotations/validation"),
    gigabytes=1.1,
)

VOC = PhotoSet(
    name="voc2012-aug",
    title="PASCAL VOC 2012 with the masks of SBD",
    home="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    terms="the photos are Flickr's, under its terms of use; research use is customary",
    layout="""\
VOCdevkit/VOC2012/
  JPEGImages/<image>.jpg
  SegmentationClass/<image>.png                   palette images
  SegmentationClassAug/<image>.png
  ImageSets/Segmentation/train.txt                1,464 names
  ImageSets/Segmentation/aug.txt                  9,118 names
  ImageSets/Segmentation/val.txt                  1,449 names
SegmentationClassAug and aug.txt are made by voc_aug.py of mmsegmentation's dataset_converters from SBD,
http://home.bharathh.info/pubs/codes/SBD/download.html (Hariharan et al. 2011). Test is val.""",
    folders=("VOCdevkit/VOC2012", "VOC2012"),
    needed=(
        "JPEGImages",
        "SegmentationClass",
        "SegmentationClassAug",
        "ImageSets/Segmentation/train.txt",
        "ImageSets/Segmentation/aug.txt",
        "ImageSets/Segmentation/val.txt",
    ),
    gigabytes=2.5,
)

ACDC = PhotoSet(
    name="acdc",
    title="ACDC (Adverse Conditions Dataset with Correspondences)",
    home="https://acdc.vision.ee.ethz.ch/",
    terms="non-commercial research and education only, after registration on the home page",
    layout="""\
acdc/                                rgb_anon_trainvaltest.zip and gt_trainval.zip
  rgb_anon/<condition>/train/<drive>/<frame>_rgb_anon.png        fog, night, rain, snow
  rgb_anon/<condition>/val/<drive>/<frame>_rgb_anon.png
  gt/<condition>/train/<drive>/<frame>_gt_labelTrainIds.png
  gt/<condition>/val/<drive>/<frame>_gt_labelTrainIds.png
Test is val: the labels of the official test part are not public.""",
    folders=("acdc", "ACDC"),
    needed=("rgb_anon", "gt"),
    gigabytes=14,
)

NYU = PhotoSet(
    name="nyuv2",
    title="NYU Depth v2",
    home="https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
    terms="no licence is stated; research use is customary",
    layout="""\
NYUDepthv2/
  RGB/<image>.jpg
  Label/<image>.png        0 is no class, 1 to 40 are the classes of Gupta et al. (2013)
  train.txt                795 lines; the first word of a line is an image, with or without folder and ending
  test.txt                 654 lines""",
    folders=("NYUDepthv2", "nyuv2", "NYUv2"),
    needed=("RGB", "Label", "train.txt", "test.txt"),
    gigabytes=0.5,
)

STUFF_TERMS = "annotations CC-BY-4.0; the photos belong to their Flickr users, under Flickr's terms of use"

STUFF_10K = PhotoSet(
    name="coco-stuff-10k",
    title="COCO-Stuff 10K",
    home="https://github.com/nightrome/cocostuff10k",
    terms=STUFF_TERMS,
    layout="""\
coco_stuff10k/                       as coco_stuff10k.py of mmsegmentation's dataset_converters leaves it
  images/train2014/<image>.jpg
  images/test2014/<image>.jpg
  annotations/train2014/<image>_labelTrainIds.png       0 is no class, 1 to 171 are classes
  annotations/test2014/<image>_labelTrainIds.png""",
    folders=("coco_stuff10k",),
    needed=("images/train2014", "images/test2014", "annotations/train2014", "annotations/test2014"),
    gigabytes=2,
)

STUFF_164K = PhotoSet(
    name="coco-stuff-164k",
    title="COCO-Stuff 164K",
    home="https://github.com/nightrome/cocostuff",
    terms=STUFF_TERMS,
    layout="""\
coco_stuff164k/                      as coco_stuff164k.py of mmsegmentation's dataset_converters leaves it
  images/train2017/<image>.jpg
  images/val2017/<image>.jpg
  annotations/train2017/<image>_labelTrainIds.png       0 to 170 are classes, 255 is none
  annotations/val2017/<image>_labelTrainIds.png
Test is val2017.""",
    folders=("coco_stuff164k",),
    needed=("images/train2017", "images/val2017", "annotations/train2017", "annotations/val2017"),
    gigabytes=21,
)

DEEPGLOBE = PhotoSet(
    name="deepglobe-land",
    title="DeepGlobe Land Cover Classification",
    home="https://competitions.codalab.org/competitions/18468",
    terms="DigitalGlobe's internal-use licence: research, no redistribution; registration on the home page",
    layout="""\
land/
  train/<image>_sat.jpg
  train/<image>_mask.png       colours: cyan, yellow, magenta, green, blue, white; black is unknown
803 images; test is the first fifth of them by name. The official validation and test parts have no public labels.""",
    folders=("land", "deepglobe-land", "deepglobe/land"),
    needed=("train",),
    gigabytes=3,
)

CONTEXT = PhotoSet(
    name="pascal-context-59",
    title="PASCAL-Context, 59 classes",
    home="https://cs.stanford.edu/~roozbeh/pascal-context/",
    terms="the photos are Flickr's, under its terms of use; research use is customary",
    layout="""\
VOCdevkit/VOC2010/
  JPEGImages/<image>.jpg
  SegmentationClassContext/<image>.png            0 is background, 1 to 59 are classes
  ImageSets/SegmentationContext/train.txt         4,998 names
  ImageSets/SegmentationContext/val.txt           5,105 names
Masks and lists are made by pascal_context.py of mmsegmentation's dataset_converters. Test is val.""",
    folders=("VOCdevkit/VOC2010", "VOC2010"),
    needed=(
        "JPEGImages",
        "SegmentationClassContext",
        "ImageSets/SegmentationContext/train.txt",
        "ImageSets/SegmentationContext/val.txt",
    ),
    gigabytes=1.5,
)

PHOTO_SETS: dict[str, PhotoSet] = {
    one.name: one for one in (CITYSCAPES, ADE20K, VOC, ACDC, NYU, STUFF_10K, STUFF_164K, DEEPGLOBE, CONTEXT)
}


def find(name: str, root: Path) -> Path:
    """The folder of a data set: one of its names under `root`, or `root` itself; single images are not opened.

    Raises:
        KdzooError: with what was found, the layout expected, the home page and the terms.
    """
    if name not in PHOTO_SETS:
        raise unknown("data set", name, PHOTO_SETS, f"Known: {', '.join(sorted(PHOTO_SETS))}.")
    info = PHOTO_SETS[name]
    if not root.is_dir():
        raise layout_error(info, root, "the data root is not a folder")
    places = [place for folder in info.folders if (place := root / folder).is_dir()] or [root]
    missing = [piece for piece in info.needed if not (places[0] / piece).exists()]
    if missing:
        raise layout_error(info, places[0], f"{missing[0]} is missing")
    return places[0]
