"""The walks of CONTRIBUTING.md and of `kdzoo new-plugin`, step by step as they are written."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
Step = Callable[..., "subprocess.CompletedProcess[str]"]


def steps(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language; of CONTRIBUTING.md, those of the walk."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page == "CONTRIBUTING.md":
        text = text.partition("## From nothing to a green bench")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def runner(cwd: Path, home: Path, package_path: Path) -> Step:
    """Run a command as a reader types it; one that fails is an error, unless its code is expected."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(package_path),
        "KDZOO_HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
    }

    def run(command: str, code: int = 0, cwd: Path = cwd) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            shlex.split(command), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done

    return run


def in_place_of_what_raises(path: Path, code: str) -> None:
    """Put lines in the place of the one statement that says what is missing."""
    text, count = re.subn(
        r"^    raise NotImplementedError\(.*\)\n", code, path.read_text(), flags=re.MULTILINE
    )
    assert count == 1
    path.write_text(text)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the repository, as far as the walk touches it; what is only read is linked."""
    root = tmp_path / "checkout"
    shutil.copytree(
        ROOT / "plugins/vision",
        root / "plugins/vision",
        copy_function=os.symlink,
        ignore=shutil.ignore_patterns("*.egg-info", "__pycache__", "build"),
    )
    (root / "tests/plugins/vision").mkdir(parents=True)
    for name in ("core", "pyproject.toml", "tests/plugins/vision/test_contract.py"):
        (root / name).symlink_to(ROOT / name)
    return root


@pytest.mark.slow
def test_the_walk_of_contributing(checkout: Path, tmp_path: Path) -> None:
    """Would catch a walk that stops before the green bench: at a command, a file, a message, an equation."""
    package = checkout / "plugins/vision/src"
    run = runner(checkout, tmp_path / "home", package)
    before, after = (block.splitlines() for block in steps("CONTRIBUTING.md", "sh"))
    new, first_tests = before
    assert "wrote plugins/vision/src/kdzoo_vision/methods/logit-mse.toml" in run(new).stdout
    module = package / "kdzoo_vision/methods/logit_mse.py"
    tests = checkout / "tests/plugins/vision/test_logit_mse.py"

    said = run(first_tests, code=1).stdout
    assert "8 failed, 1 passed" in said
    for missing in (
        "BY_HAND: work out the loss of STUDENT and TEACHER with a pencil",
        "reference: write the paper's equation for one item with loops",
        "logit_mse.py, _per_item: write the paper's equation here",
        'logit-mse.toml:4: title = "FILL IN: the paper\'s title"',
    ):
        assert missing in said

    by_hand, reference, equation = steps("CONTRIBUTING.md", "python")
    tests.write_text(tests.read_text().replace("BY_HAND: list[float] | None = None\n", by_hand))
    in_place_of_what_raises(tests, reference)
    in_place_of_what_raises(module, equation)

    tutorial = "docs/tutorials/add-a-method.md"
    for block in [*steps(tutorial, "toml"), *steps(tutorial, "python")]:
        if match := re.match(r"# (methods/[\w.-]+)\n", block):
            (package / "kdzoo_vision" / match[1]).write_text(block.partition("\n")[2])
    check, bench = after
    passed = run(check).stdout
    assert re.search(r"^2\d passed", passed, re.MULTILINE)
    assert "SMOKE RUN" in run(f"{bench} --jobs 0").stdout  # without the start of worker processes
    for tool in ("check", "format --check"):
        run(f"ruff {tool} --config {ROOT / 'pyproject.toml'} {module} {tests}")


@pytest.mark.slow
def test_a_new_plugin(tmp_path: Path) -> None:
    """Would catch a skeleton that cannot be built, is not found, breaks a rule of its own, or fails its own tests."""
    site, folder = tmp_path / "site", tmp_path / "kdzoo-audio"
    run = runner(tmp_path, tmp_path / "home", site)
    said = run("kdzoo new-plugin audio").stdout
    assert "next:\n  pip install -e kdzoo-audio\n" in said
    built = shutil.copytree(folder, tmp_path / "built")
    run(
        f"{sys.executable} -m pip install -q --no-deps --no-build-isolation --no-index --target {site} {built}"
    )
    found = json.loads(run("kdzoo plugins --json").stdout)["plugins"]
    (audio,) = [plugin for plugin in found if plugin["name"] == "audio"]
    assert (audio["distribution"], audio["error"]) == ("kdzoo-audio", None)
    assert "soft targets at temperature T" in run("kdzoo show audio-soft-labels").stdout

    passed = run("pytest -q", cwd=folder).stdout
    assert re.search(r"\d\d passed, \d skipped", passed)
    added = run("kdzoo new my-method --plugin audio --path kdzoo-audio").stdout
    assert "wrote kdzoo-audio/tests/test_my_method.py" in added
    assert "so it does not see these files yet" in added
    for tool in ("ruff check .", "ruff format --check ."):
        run(tool, cwd=folder)
