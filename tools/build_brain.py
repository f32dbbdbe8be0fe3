"""Rebuild the labelled brain slices that kdzoo_segmentation ships (task `brain-slices`).

    apt-get download mricron-data
    python tools/build_brain.py --source mricron-data_1.2.20211006+dfsg-4_all.deb

The package holds one T1-weighted MRI (Colin27, "ch2", 1 mm) and the AAL atlas on the same grid. Written to
kdzoo_segmentation/data/files: `brain.npz` (slices and labels of three planes), `brain-manifest.json` (source, classes,
blocks, sha256). The unpacked volumes are checked against the sha256 below.

Slices are cut along each axis every 2 mm, averaged over 2 x 2 mm, and laid on a canvas of 104 x 104; a label is that of
the voxel at the block's corner, since labels cannot be averaged. The 116 regions make 8 classes (`CLASSES`). Slices
without any labelled region are left out.

Splits: the slices of a plane are cut into blocks of `BLOCK`; blocks go round to train, train, val, train, test, so that
a slice's nearest neighbours in another split are a block's border apart, and there `GAP` slices are dropped.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np

FILES = Path(__file__).parents[1] / "plugins/segmentation/src/kdzoo_segmentation/data/files"
FOLDER = "./usr/share/mricron/templates/"
CONTENT = {  # sha256 of the unpacked volumes
    "ch2.nii.gz": "707a360b809ba937f6c007231bcf7dc6e2d33657497b254414c9894b6efa5f8c",
    "aal.nii.gz": "2926fcc98efc709f77c8cca2f9c1d797eba3e9a1b222a8e0cfa70ab131394c80",
}
HEADER = 352  # bytes before the voxels of a NIfTI-1 file
SHAPE = (181, 217, 181)  # z, y, x
SIDE = 104  # pixels of a slice's canvas
STEP = 2  # mm between slices and between pixels
BLOCK, GAP = 6, 1  # slices
ROUND = ("train", "train", "val", "train", "test")
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}  # plane -> axis that is cut
CLASSES = ("background", "frontal", "central", "temporal", "parietal", "occipital", "deep", "cerebellum")
"""central: pre- and postcentral gyri and paracentral lobule; deep: insula, cingulate, hippocampus, amygdala, basal
ganglia, thalamus."""
PREFIXES = {  # first word of a region's name in aal.nii.txt -> class
    "Precentral": "central", "Postcentral": "central", "Paracentral": "central", "Rolandic": "central",
    "Frontal": "frontal", "Supp": "frontal", "Olfactory": "frontal", "Rectus": "frontal",
    "Insula": "deep", "Cingulum": "deep", "Hippocampus": "deep", "ParaHippocampal": "deep", "Amygdala": "deep",
    "Caudate": "deep", "Putamen": "deep", "Pallidum": "deep", "Thalamus": "deep",
    "Calcarine": "occipital", "Cuneus": "occipital", "Lingual": "occipital", "Occipital": "occipital",
    "Fusiform": "temporal", "Temporal": "temporal", "Heschl": "temporal",
    "Parietal": "parietal", "SupraMarginal": "parietal", "Angular": "parietal", "Precuneus": "parietal",
    "Cerebelum": "cerebellum", "Vermis": "cerebellum",
}  # fmt: skip


def volumes(package: Path) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """The MRI and the atlas, (z, y, x) uint8, and the regions' names by number."""
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        head, atlas = (voxels(archive, name) for name in CONTENT)
        lines = read(archive, "aal.nii.txt").decode("ascii").splitlines()
    names = {int(number): name for number, name, *_ in (line.split() for line in lines if line.strip())}
    return head, atlas, names


def read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(FOLDER + name)
    if member is None:
        raise SystemExit(f"the package holds no {FOLDER + name}; expected mricron-data 1.2")
    return member.read()


def voxels(archive: tarfile.TarFile, name: str) -> np.ndarray:
    content = gzip.decompress(read(archive, name))
    found = hashlib.sha256(content).hexdigest()
    if found != CONTENT[name]:
        raise SystemExit(
            f"{name}: its content has sha256 {found}, not {CONTENT[name]}: another version of the data"
        )
    return np.frombuffer(content, np.uint8, offset=HEADER).reshape(SHAPE)


def classes_of(names: dict[int, str]) -> np.ndarray:
    """Region number -> class number."""
    table = np.zeros(256, np.uint8)
    for number, name in names.items():
        table[number] = CLASSES.index(PREFIXES[name.split("_")[0]])
    return table


def canvas(rows: np.ndarray) -> np.ndarray:
    """A slice on the square canvas, in its middle."""
    out = np.zeros((SIDE, SIDE), rows.dtype)
    rows = rows[:SIDE, :SIDE]
    top, left = (SIDE - rows.shape[0]) // 2, (SIDE - rows.shape[1]) // 2
    out[top : top + rows.shape[0], left : left + rows.shape[1]] = rows
    return out


def halved(plane: np.ndarray) -> np.ndarray:
    """Mean over 2 x 2 pixels, rounded."""
    high, wide = (length // STEP for length in plane.shape)
    cut = plane[: high * STEP, : wide * STEP].reshape(high, STEP, wide, STEP).astype(np.uint16)
    return ((cut.sum(axis=(1, 3)) + 2) // 4).astype(np.uint8)


def slices(head: np.ndarray, labels: np.ndarray) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """(id, split, image, labels) of every slice that is kept."""
    found = []
    for plane, axis in PLANES.items():
        kept = [i for i in range(0, SHAPE[axis], STEP) if np.take(labels, i, axis).any()]
        for place, index in enumerate(kept):
            block, inside = divmod(place, BLOCK)
            split, after = ROUND[block % len(ROUND)], ROUND[(block + 1) % len(ROUND)]
            if split != after and inside >= BLOCK - GAP:
                continue
            # The head stands upright in the picture: rows run from top to bottom, from front to back.
            image, truth = (np.take(volume, index, axis)[::-1] for volume in (head, labels))
            rows = truth[: truth.shape[0] // STEP * STEP : STEP, : truth.shape[1] // STEP * STEP : STEP]
            found.append((f"{plane}/{index}", split, canvas(halved(image)), canvas(rows)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FILES)
    given = parser.parse_args()
    head, atlas, names = volumes(given.source)
    rows = slices(head, classes_of(names)[atlas])
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "brain.npz"
    np.savez_compressed(
        path, images=np.stack([row[2] for row in rows]), labels=np.stack([row[3] for row in rows])
    )
    manifest = {
        "source": f"Debian package {given.source.name} (MRIcron by Chris Rorden), BSD-3-Clause",
        "volumes": CONTENT,
        "classes": CLASSES,
        "block": BLOCK,
        "gap": GAP,
        "ids": [row[0] for row in rows],
        "splits": [row[1] for row in rows],
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    (given.out / "brain-manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    counts = {split: sum(row[1] == split for row in rows) for split in sorted(set(ROUND))}
    print(f"{path}: {path.stat().st_size} bytes; slices {counts}")


if __name__ == "__main__":
    main()
