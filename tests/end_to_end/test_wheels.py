"""The wheels: what a user installs holds everything, and works outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    "kdzoo": "core",
    "kdzoo_llm": "plugins/llm",
    "kdzoo_segmentation": "plugins/segmentation",
    "kdzoo_vision": "plugins/vision",
}
LEFT_OUT = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__", ".mypy_cache")


def run(*command: object, **options: object) -> str:
    """Run a program that must succeed; returns what it printed on stdout."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All wheels, built from copies: a build leaves folders behind where it runs."""
    folder = tmp_path_factory.mktemp("wheels")
    built = {}
    for name, source in SOURCES.items():
        copy = folder / source
        shutil.copytree(ROOT / source, copy, ignore=LEFT_OUT)
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", copy)
        (built[name],) = (folder / "dist").glob(f"{name}-*.whl")
    return built


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("name", SOURCES)
def test_a_wheel_holds_what_the_source_holds(wheels: dict[str, Path], name: str):
    """Would catch a card, data file, licence or type marker that stayed behind because no pattern names it."""
    source = f"{SOURCES[name]}/src"
    tree = ROOT / source / name
    listed = [path for path in tree.rglob("*") if path.is_file()]
    wanted = {
        path.relative_to(ROOT / source).as_posix()
        for path in listed
        if not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(tree).parts)
    }
    assert not wanted - contents(wheels[name])
    assert f"{name}/py.typed" in wanted


@pytest.mark.parametrize(
    ("name", "licence", "files"),
    [
        ("kdzoo", "Apache-2.0", ["LICENSE"]),
        ("kdzoo_llm", "Apache-2.0 AND MIT AND LicenseRef-WordNet-3.0", ["LICENSE", "NOTICE"]),
        (
            "kdzoo_segmentation",
            "Apache-2.0 AND BSD-3-Clause AND CC-BY-4.0 AND CC-BY-2.0 AND CC0-1.0",
            ["LICENSE", "NOTICE"],
        ),
        ("kdzoo_vision", "Apache-2.0 AND MIT AND CC-BY-4.0 AND Unicode-3.0", ["LICENSE", "NOTICE"]),
    ],
)
def test_a_wheel_carries_its_licences(wheels: dict[str, Path], name: str, licence: str, files: list[str]):
    """Would catch a wheel that hands on other people's data without their names and terms."""
    (metadata,) = (path for path in contents(wheels[name]) if path.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheels[name]) as archive:
        fields = HeaderParser().parsestr(archive.read(metadata).decode())
    assert fields["License-Expression"] == licence
    inside = contents(wheels[name])
    for file in files:
        assert metadata.replace("METADATA", f"licenses/{file}") in inside


OWNERS = {
    "llm": {
        "lint": ("ruff", "Charlie Marsh", "MIT"),
        "model": ("Weights",),
        "page": ("Weights",),
        "relations": ("WordNet", "Princeton University"),
        "tokenizer": ("Tokenizers",),
        "told": ("Weights",),
        "verses": ("World English Bible", "Reina-Valera", "public domain"),
    },
    "vision": {
        "emoji": ("Noto Emoji", "Twemoji", "creativecommons.org/licenses/by/4.0"),
        "fashion": ("Fashion-MNIST", "Zalando"),
    },
    "segmentation": {
        "brain": ("Colin27", "AAL", "Chris Rorden", "BSD 3-Clause"),
        "emoji": ("Teachers' weights",),
        "scenes": ("Noto Emoji", "Twemoji", "creativecommons.org/licenses/by/4.0", "scikit-image"),
    },
}


@pytest.mark.parametrize("plugin", OWNERS)
def test_every_shipped_data_file_has_a_notice(plugin: str):
    """Would catch a data set that was added without a word on whose it is."""
    notice = (ROOT / f"plugins/{plugin}/NOTICE").read_text()
    files = (ROOT / f"plugins/{plugin}/src/kdzoo_{plugin}/data/files").iterdir()
    stems = {path.name.partition("-")[0].partition(".")[0] for path in files}
    assert stems == set(OWNERS[plugin])
    for named in OWNERS[plugin].values():
        assert [words for words in named if words not in notice] == []


@pytest.fixture(scope="module")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty virtual environment with the wheels; torch and the other packages are the outer one's.

    Their folders are named in a .pth file and so come after the environment's own: kdzoo is the wheel's.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin/python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        *wheels.values(),
    )
    inner = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    outer = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (inner / "outer.pth").write_text("".join(f"{path}\n" for path in outer))
    return folder


def test_the_wheels_work_outside_the_repository(environment: Path, tmp_path: Path):
    """Would catch whatever works only in a checkout: a path into the source tree, a file that is not packaged."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "KDZOO"))}
    options = {
        "cwd": tmp_path,
        "env": {**clean, "KDZOO_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
    }
    where = "import kdzoo, kdzoo_vision; print(kdzoo.__path__[0]); print(kdzoo_vision.__path__[0])"
    for place in run(environment / "bin/python", "-c", where, **options).split():
        assert Path(place).is_relative_to(environment)
    kdzoo = environment / "bin/kdzoo"
    listed = run(kdzoo, "list", **options)
    for slug in ("rkd", "hinton-kd", "fitnets", "dkd", "dist"):
        assert f"\n{slug} " in listed
    printed = run(kdzoo, "bench", "rkd", "--smoke", **options)
    assert "SMOKE RUN" in printed
    assert "rkd.without-angle" in printed
    assert list((tmp_path / "home/benches").glob("rkd-*/record.json"))
