"""Rebuild the drawings and photos that kdzoo_segmentation ships (task `emoji-scenes`).

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 --pack-destination DIR
    pip download --no-deps --dest DIR scikit-image==0.26.0 scikit-learn==1.9.1
    python tools/build_scenes.py DIR

Reads the archives without unpacking them to disk and writes, under kdzoo_segmentation/data/files: a PNG sheet of
cut-outs for each drawing style (`scenes-google.png`, `scenes-twitter.png`), the photos (`scenes-colour.png`,
`scenes-grey.png`) and `scenes-manifest.json` (sources, classes, the photos' splits, what lies where, sha256 of the
other files).
The same archives, Pillow and zlib give the same bytes; with another zlib the PNG bytes may differ while the pixels are
the same. The scenes are composed when they are loaded, from these files alone.

Photos: only those whose docstring or README in the package names their author and a licence, or that they are in the
public domain; none of an identifiable person. `PHOTOS` says what is written there.

Splits: a photo belongs to one; all splits show all drawings.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from build_emoji import read_archive
from PIL import Image

FILES = Path(__file__).parents[1] / "plugins/segmentation/src/kdzoo_segmentation/data/files"
VERSION = "16.0.0"
STYLES = {  # style -> licence of the drawings and their authors
    "google": ("Apache-2.0", "Noto Emoji 2.048, Google Inc. and other contributors"),
    "twitter": (
        "CC-BY-4.0",
        "Twemoji 16.0.1, Twitter, Jason Sofonia, Justine De Caires and other contributors",
    ),
}
SIDE = 48  # pixels of a cut-out; the source drawings are 64x64
STEP = 8  # of a cut-out's colours: their lowest bits cost half of the file and are not seen
COLUMNS = 24

CLASSES = {  # class -> sub-groups of Unicode, and the concepts among them that are something else
    "animal": (
        ("animal-mammal", "animal-bird", "animal-bug", "animal-marine", "animal-reptile", "animal-amphibian"),
        ("paw prints", "pig nose", "spider web", "feather", "wing", "microbe", "spiral shell", "oyster", "coral"),
    ),
    "food": (
        ("food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet"),
        ("salt shaker", "cooking", "canned food", "bowl with spoon", "takeout box"),
    ),
    "face": (
        (
            "face-affection", "face-concerned", "face-glasses", "face-hand", "face-hat", "face-neutral-skeptical",
            "face-sleepy", "face-smiling", "face-tongue", "face-unwell",
        ),
        (),
    ),
    "vehicle": (
        ("transport-ground", "transport-air", "transport-water"),
        (
            "station", "bus stop", "horizontal traffic light", "vertical traffic light", "construction sign",
            "police cars revolving light", "octagonal sign", "wheel", "oil drum", "motorway", "railway track",
            "roller skate", "fuel pump", "seat", "parachute", "ring buoy", "anchor", "satellite",
        ),
    ),
    "clothes": (
        ("clothing",),
        (
            "lipstick", "ring", "gem stone", "prayer beads", "folding hand fan", "hair pick", "shopping bags",
            "eyeglasses", "sunglasses", "goggles", "school satchel", "purse", "handbag", "pouch",
        ),
    ),
    "plant": (("plant-flower", "plant-other"), ("rosette", "empty nest", "nest with eggs")),
}  # fmt: skip

CC0, PUBLIC = "CC0-1.0", "public domain"
WIDE, HIGH = 224, 192  # pixels of a photo at most


@dataclass(frozen=True)
class Photo:
    """A photo of one of the two packages.

    Attributes:
        file: its path in the wheel.
        split: where it is used.
        reduce: pixels, along each axis, that are averaged to one.
        licence: as the package states it.
        by: author, and the source that the package names.
    """

    file: str
    split: str
    reduce: int
    licence: str
    by: str


PHOTOS = {
    "brick": Photo("skimage/data/brick.png", "train", 2, CC0, "cc0textures.com, Bricks25"),
    "camera": Photo("skimage/data/camera.png", "train", 2, CC0, "Lav Varshney"),
    "china": Photo(
        "sklearn/datasets/images/china.jpg", "train", 2, "CC-BY-2.0",
        "danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035/",
    ),
    "coffee": Photo("skimage/data/coffee.png", "train", 2, CC0, "Rachel Michetti, courtesy of Pikolo Espresso Bar"),
    "retina": Photo(
        "skimage/data/retina.jpg", "train", 7, CC0,
        "Mikael Häggström, https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
    ),
    "cell": Photo("skimage/data/cell.png", "val", 3, CC0, "Paul Müller et al., https://doi.org/10.1364/OE.26.010729"),
    "gravel": Photo("skimage/data/gravel.png", "val", 2, CC0, "cc0textures.com, Gravel04"),
    "rocket": Photo(
        "skimage/data/rocket.jpg", "val", 2, PUBLIC,
        "SpaceX, https://www.flickr.com/photos/spacexphotos/16511594820/",
    ),
    "chelsea": Photo("skimage/data/chelsea.png", "test", 2, CC0, "Stefan van der Walt"),
    "clock": Photo("skimage/data/clock_motion.png", "test", 2, PUBLIC, "Stefan van der Walt"),
    "grass": Photo(
        "skimage/data/grass.png", "test", 2, CC0,
        "linolafett, https://www.deviantart.com/linolafett/art/Grass-01-434853879",
    ),
    "hubble": Photo(
        "skimage/data/hubble_deep_field.jpg", "test", 4, PUBLIC,
        "NASA, http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
    ),
}  # fmt: skip
WHEELS = {"skimage": "scikit_image-0.26.0-*.whl", "sklearn": "scikit_learn-1.9.1-*.whl"}


def drawing(png: bytes) -> np.ndarray:
    """One drawing as (SIDE, SIDE, 4) uint8 with straight alpha."""
    # "RGBa" has its colours multiplied by the opacity: else invisible black would darken every outline.
    image = Image.open(io.BytesIO(png)).convert("RGBA").convert("RGBa")
    small = np.array(image.resize((SIDE, SIDE), Image.Resampling.HAMMING).convert("RGBA"))
    small[..., :3] = np.minimum((small[..., :3].astype(int) + STEP // 2) // STEP * STEP, 255)
    alpha = small[..., 3]
    alpha[alpha < 8], alpha[alpha > 247] = 0, 255
    small[alpha == 0] = 0
    return small


def sheet(cells: list[np.ndarray]) -> bytes:
    """All cells row by row, COLUMNS in a row, as PNG."""
    rows = -(-len(cells) // COLUMNS)
    canvas = np.zeros((rows * SIDE, COLUMNS * SIDE, 4), np.uint8)
    for position, cell in enumerate(cells):
        row, column = divmod(position, COLUMNS)
        canvas[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = cell
    return png_of(canvas)


def png_of(canvas: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(canvas).save(out, "PNG", optimize=True)
    return out.getvalue()


def photo(content: bytes, factor: int) -> np.ndarray:
    """The middle of a photo, (H, W) or (H, W, 3) uint8, at most HIGH x WIDE."""
    image = Image.open(io.BytesIO(content))
    small = np.asarray(image.convert("L" if image.mode == "L" else "RGB").reduce(factor))
    high, wide = min(HIGH, small.shape[0]), min(WIDE, small.shape[1])
    top, left = (small.shape[0] - high) // 2, (small.shape[1] - wide) // 2
    return small[top : top + high, left : left + wide]


def concepts(listing: list[dict]) -> list[tuple[str, str, str, str]]:
    """(code points, name, class, image) of every concept in Unicode's order, class by class."""
    found = []
    for name, (subgroups, others) in CLASSES.items():
        for entry in sorted(listing, key=lambda entry: (entry["sort_order"], entry["unified"])):
            said = entry["name"].lower()
            both = all(entry[f"has_img_{style}"] for style in STYLES)
            if both and entry["subcategory"] in subgroups and said not in others:
                found.append((entry["unified"], said, name, entry["image"]))
    return found


def photos(folder: Path) -> tuple[dict[str, bytes], dict[str, dict], dict[str, str]]:
    """Two sheets, where each photo lies and where it is from, and the sha256 of the wheels."""
    wheels = {}
    for package, pattern in WHEELS.items():
        if not (found := sorted(folder.glob(pattern))):
            raise SystemExit(f"{folder} holds no {pattern}: see the head of this file for the commands")
        wheels[package] = found[0]
    sheets: dict[str, list[np.ndarray]] = {"colour": [], "grey": []}
    places = {}
    for name, entry in PHOTOS.items():
        with zipfile.ZipFile(wheels[entry.file.partition("/")[0]]) as wheel:
            content = wheel.read(entry.file)
        pixels = photo(content, entry.reduce)
        kind = "grey" if pixels.ndim == 2 else "colour"
        cell = np.zeros((HIGH, WIDE, *pixels.shape[2:]), np.uint8)
        cell[: pixels.shape[0], : pixels.shape[1]] = pixels
        where = {"sheet": kind, "place": len(sheets[kind]), "high": pixels.shape[0], "wide": pixels.shape[1]}
        places[name] = asdict(entry) | where | {"sha256_of_source": hashlib.sha256(content).hexdigest()}
        sheets[kind].append(cell)
    # The wheels differ by platform; the photos in them do not.
    versions = {package: "-".join(path.name.split("-")[:2]) for package, path in wheels.items()}
    return (
        {f"scenes-{kind}.png": png_of(np.concatenate(cells)) for kind, cells in sheets.items()},
        places,
        versions,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the four archives are")
    parser.add_argument("--out", type=Path, default=FILES)
    given = parser.parse_args()

    cells: dict[str, list[np.ndarray]] = {}
    sources = {}
    rows: list[tuple[str, str, str, str]] = []
    for style, (licence, authors) in STYLES.items():
        path = given.folder / f"emoji-datasource-{style}-{VERSION}.tgz"
        archive = read_archive(path, style)
        rows = concepts(json.loads(archive["package/emoji.json"]))
        cells[style] = [drawing(archive[f"package/img/{style}/64/{row[3]}"]) for row in rows]
        sources[style] = {
            "package": f"emoji-datasource-{style}@{VERSION}",
            "tarball_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "drawings": authors,
            "licence": licence,
        }
    written = {f"scenes-{style}.png": sheet(cells[style]) for style in STYLES}
    pictures, places, versions = photos(given.folder)
    written |= pictures
    manifest: dict[str, Any] = {
        "command": "python tools/build_scenes.py DIR",
        "sources": sources,
        "wheels": versions,
        "changes": "drawings reduced from 64x64, colours rounded, arranged in sheets; photos reduced and cut",
        "side": SIDE,
        "columns": COLUMNS,
        "photo": [HIGH, WIDE],
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in written.items()},
        "photos": places,
        "columns_of_concepts": ["code points", "name", "class"],
        "concepts": [row[:3] for row in rows],
    }
    given.out.mkdir(parents=True, exist_ok=True)
    for name, content in written.items():
        (given.out / name).write_bytes(content)
        print(f"{name}: {len(content):,} bytes")
    lines = json.dumps(manifest, indent=1, ensure_ascii=False)
    for concept in manifest["concepts"]:
        lines = lines.replace(
            json.dumps(concept, indent=1, ensure_ascii=False).replace("\n", "\n  "),
            json.dumps(concept, ensure_ascii=False),
        )
    (given.out / "scenes-manifest.json").write_text(lines + "\n", encoding="utf-8")
    for name in CLASSES:
        print(name, sum(row[2] == name for row in rows))


if __name__ == "__main__":
    main()
