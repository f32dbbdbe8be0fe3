"""The sets of photos as data sets of mmseg: its own classes, and three more where it has none.

`pieces` lists the images and masks of an official part as mmseg's pipelines want them. Classes, palettes and file
suffixes are mmseg's for Cityscapes, ADE20K, VOC, COCO-Stuff and PASCAL-Context; its `NYUDataset` is of depth, and ACDC
and DeepGlobe it does not have: these three are registered here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kdzoo_segmentation.openmmlab import DATASETS, BaseSegDataset, CityscapesDataset, in_mmseg


@DATASETS.register_module()
class NYUv2Dataset(BaseSegDataset):
    """NYU Depth v2 with the 40 classes of Gupta et al. (CVPR 2013); 0 is no class.

    The list's lines may be bare names, "RGB/5.jpg Label/5.png" or anything between: the first word's stem counts.
    """

    METAINFO: ClassVar[dict[str, Any]] = {
        "classes": (
            "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
            "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes",
            "ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard",
            "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture",
            "otherprop",
        ),
    }  # fmt: skip

    def __init__(self, **rest: Any) -> None:
        super().__init__(img_suffix=".jpg", seg_map_suffix=".png", reduce_zero_label=True, **rest)

    def load_data_list(self) -> list[dict[str, Any]]:
        lines = Path(self.ann_file).read_text(encoding="utf-8").splitlines()
        names = [Path(line.split()[0]).stem for line in lines if line.strip()]
        return [_piece(self, name) for name in names]


@DATASETS.register_module()
class ACDCDataset(CityscapesDataset):
    """ACDC: Cityscapes' classes in fog, night, rain and snow.

    Args:
        part: "train" or "val" of all four conditions; the folders *_ref of clear weather have no labels.
    """

    def __init__(self, part: str, **rest: Any) -> None:
        self.part = part
        super().__init__(img_suffix="_rgb_anon.png", seg_map_suffix="_gt_labelTrainIds.png", **rest)

    def load_data_list(self) -> list[dict[str, Any]]:
        root = Path(self.data_prefix["img_path"])
        found: list[dict[str, Any]] = super().load_data_list()
        return [one for one in found if Path(one["img_path"]).relative_to(root).parts[1] == self.part]


@DATASETS.register_module()
class DeepGlobeLandDataset(BaseSegDataset):
    """DeepGlobe land cover, whose masks are in colours; "unknown" (black) is no class.

    Args:
        part: "test" is the first fifth of the images by name, "train" the rest
            (zifuwanggg/JDTLosses@68ce8ac datas/datasets/deepglobe_land.py, fold 0).
    """

    METAINFO: ClassVar[dict[str, Any]] = {
        "classes": ("urban", "agriculture", "rangeland", "forest", "water", "barren"),
        "palette": [[0, 255, 255], [255, 255, 0], [255, 0, 255], [0, 255, 0], [0, 0, 255], [255, 255, 255]],
    }

    def __init__(self, part: str, **rest: Any) -> None:
        self.part = part
        super().__init__(img_suffix="_sat.jpg", seg_map_suffix="_mask.png", **rest)

    def load_data_list(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = super().load_data_list()
        fold = len(found) // 5
        return found[:fold] if self.part == "test" else found[fold:]


def _piece(data: BaseSegDataset, name: str) -> dict[str, Any]:
    """An entry of `BaseSegDataset.data_list`."""
    return {
        "img_path": str(Path(data.data_prefix["img_path"]) / f"{name}{data.img_suffix}"),
        "seg_map_path": str(Path(data.data_prefix["seg_map_path"]) / f"{name}{data.seg_map_suffix}"),
        "label_map": data.label_map,
        "reduce_zero_label": data.reduce_zero_label,
        "seg_fields": [],
    }


@dataclass(frozen=True, slots=True)
class Source:
    """A data set of mmseg: the class, and the arguments of each official part; a part may be made of several."""

    kind: str
    train: tuple[dict[str, Any], ...]
    test: tuple[dict[str, Any], ...]


def _folders(image: str, mask: str, **rest: Any) -> dict[str, Any]:
    return {"data_prefix": {"img_path": image, "seg_map_path": mask}, **rest}


_VOC_LISTS, _CONTEXT_LISTS = "ImageSets/Segmentation", "ImageSets/SegmentationContext"
_CONTEXT = "SegmentationClassContext"

# mmseg configs/_base_/datasets, where mmseg has the data set
SOURCES: dict[str, Source] = {
    "cityscapes": Source(
        "CityscapesDataset",
        (_folders("leftImg8bit/train", "gtFine/train"),),
        (_folders("leftImg8bit/val", "gtFine/val"),),
    ),
    "ade20k": Source(
        "ADE20KDataset",
        (_folders("images/training", "annotations/training"),),
        (_folders("images/validation", "annotations/validation"),),
    ),
    "voc2012-aug": Source(
        "PascalVOCDataset",
        (
            _folders("JPEGImages", "SegmentationClass", ann_file=f"{_VOC_LISTS}/train.txt"),
            _folders("JPEGImages", "SegmentationClassAug", ann_file=f"{_VOC_LISTS}/aug.txt"),
        ),
        (_folders("JPEGImages", "SegmentationClass", ann_file=f"{_VOC_LISTS}/val.txt"),),
    ),
    "acdc": Source(
        "ACDCDataset",
        (_folders("rgb_anon", "gt", part="train"),),
        (_folders("rgb_anon", "gt", part="val"),),
    ),
    "nyuv2": Source(
        "NYUv2Dataset",
        (_folders("RGB", "Label", ann_file="train.txt"),),
        (_folders("RGB", "Label", ann_file="test.txt"),),
    ),
    "coco-stuff-10k": Source(
        "COCOStuffDataset",
        (_folders("images/train2014", "annotations/train2014", reduce_zero_label=True),),
        (_folders("images/test2014", "annotations/test2014", reduce_zero_label=True),),
    ),
    "coco-stuff-164k": Source(
        "COCOStuffDataset",
        (_folders("images/train2017", "annotations/train2017"),),
        (_folders("images/val2017", "annotations/val2017"),),
    ),
    "deepglobe-land": Source(
        "DeepGlobeLandDataset",
        (_folders("train", "train", part="train"),),
        (_folders("train", "train", part="test"),),
    ),
    "pascal-context-59": Source(
        "PascalContextDataset59",
        (_folders("JPEGImages", _CONTEXT, ann_file=f"{_CONTEXT_LISTS}/train.txt"),),
        (_folders("JPEGImages", _CONTEXT, ann_file=f"{_CONTEXT_LISTS}/val.txt"),),
    ),
}


def pieces(name: str, home: Path, part: str) -> list[dict[str, Any]]:
    """Images and masks of an official part, as mmseg's data set lists them.

    Args:
        name: a key of `SOURCES`.
        home: the data set's folder.
        part: "train" or "test".
    """
    source, found = SOURCES[name], []
    for options in source.test if part == "test" else source.train:
        with in_mmseg():
            data = DATASETS.build({"type": source.kind, "data_root": str(home), "lazy_init": True, **options})
        found += data.load_data_list()
    return found


def metainfo(name: str) -> dict[str, Any]:
    """Classes and palette of a data set, the classes as words that metric names can hold."""
    known = DATASETS.get(SOURCES[name].kind).METAINFO
    classes = tuple("-".join(label.replace(",", " ").split()) for label in known["classes"])
    return {**known, "classes": classes}
