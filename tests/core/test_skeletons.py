"""`kdzoo new` and `kdzoo new-plugin`: what they refuse, that they overwrite nothing, that they write all or nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdzoo import catalog, skeletons
from kdzoo.errors import KdzooError

Run = Callable[..., Any]


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source of a plugin that is installed under the same name, as far as `kdzoo new` looks at it; one is in it."""
    folder = tmp_path / "kdzoo-vision"
    (folder / "src/kdzoo_vision/methods").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project.entry-points.kdzoo]\nvision = "kdzoo_vision.plugin"\n')
    monkeypatch.chdir(folder)
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_method_is_three_files(distribution: Path, kdzoo: Run) -> None:
    """A file in another folder, or a card that does not load, would leave a beginner at a loss."""
    done = kdzoo("new", "my-method", "--plugin", "vision", "--task", "fashion-few-labels")
    assert done.code == 0, done.err
    methods = "src/kdzoo_vision/methods"
    written = {f"{methods}/my-method.toml", f"{methods}/my_method.py", "tests/test_my_method.py"}
    assert files(distribution) - {"pyproject.toml"} == {*written, f"{methods}/__init__.py"}
    for name in written:
        assert f"wrote {name}" in done.out
    assert "pytest tests/test_my_method.py" in done.out
    assert "so it does not see these files yet" in done.out
    found = catalog.collect([catalog.load().paths["fashion-few-labels"].parent, distribution / methods])
    card = found.method("my-method")
    assert list(card.tasks) == ["fashion-few-labels"]
    assert card.claims[0].arms == ("my-method", "hinton-kd")


def test_the_skeleton_matches_what_the_task_has(distribution: Path, kdzoo: Run) -> None:
    """Logits that a metric-learning task does not have would fail in the first step."""
    assert kdzoo("new", "near", "--plugin", "vision", "--task", "emoji-retrieval").code == 0
    text = (distribution / "src/kdzoo_vision/methods/near.py").read_text()
    assert 'run.out("student").embedding' in text
    assert "logits" not in text
    assert kdzoo("new", "far", "--plugin", "vision").code == 0
    card = tomllib.loads((distribution / "src/kdzoo_vision/methods/far.toml").read_text())
    assert list(card["tasks"]) == ["fashion-few-labels"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["My_Method", "--plugin", "vision"], "'My_Method' cannot be the name of a method.*For example 'my-method'"),
        (["-x", "--plugin", "vision"], "unknown option '-x'"),
        (["2d", "--plugin", "vision"], "a letter first.*For example 'd'"),
        (["../up", "--plugin", "vision"], "cannot be the name of a method"),
        (["lambda", "--plugin", "vision"], "it is a word of Python"),
        (["a" * 31, "--plugin", "vision"], "has 31 letters, expected at most 30"),
        (["rkd", "--plugin", "vision"], "the name 'rkd' is taken by methods/rkd.toml"),
        (["cifar100", "--plugin", "vision"], "the name 'cifar100' is taken by tasks/cifar100.toml"),
        (["task", "--plugin", "vision"], "has a setting task_weight already"),
        (["mine", "--plugin", "visoin"], "unknown plugin 'visoin'. Did you mean vision"),
        (["mine", "--plugin", "core"], "unknown plugin 'core'"),
        (["mine", "--plugin", "vision", "--task", "fashion"], "unknown task 'fashion'. Did you mean"),
        (["mine", "--plugin", "vision", "--task", "cifar100"], "task 'cifar100' is of the paper profile"),
        (["mine", "--plugin", "vision", "--path", "nowhere"], "no source of the plugin 'vision' in .*nowhere"),
        (["mine"], "missing option '--plugin'"),
    ],
)  # fmt: skip
def test_what_new_refuses(distribution: Path, kdzoo: Run, words: list[str], said: str) -> None:
    """A mistake must end in one message, without a file."""
    done = kdzoo("new", *words)
    assert done.code == 2
    assert done.out == ""
    with pytest.raises(KdzooError, match=said):
        raise KdzooError(done.err)
    assert done.err.count("\n") == 1
    assert files(distribution) == {"pyproject.toml"}


def test_outside_of_a_plugin_nothing_is_written(tmp_path: Path, kdzoo: Run, monkeypatch: Any) -> None:
    """Files beside the installed package, or wherever one stands, would be found by nobody."""
    monkeypatch.chdir(tmp_path)
    done = kdzoo("new", "mine", "--plugin", "vision")
    assert done.code == 2
    assert f"no source of the plugin 'vision' in or above {tmp_path}" in done.err
    assert not files(tmp_path)


def test_nothing_is_overwritten(distribution: Path, kdzoo: Run) -> None:
    """A test that somebody has written must survive a second `kdzoo new`."""
    kept = distribution / "tests/test_mine.py"
    kept.parent.mkdir()
    kept.write_text("mine")
    done = kdzoo("new", "mine", "--plugin", "vision")
    assert done.code == 2
    assert "there already, and nothing is overwritten" in done.err
    assert files(distribution) == {"pyproject.toml", "tests/test_mine.py"}
    assert kept.read_text() == "mine"


def test_all_or_nothing(tmp_path: Path) -> None:
    """A disk that refuses the second file must not leave the first one behind."""
    (tmp_path / "file").write_text("")
    with pytest.raises(KdzooError, match="No file was left behind"):
        skeletons.write({tmp_path / "new/deep/one.txt": "1", tmp_path / "file/two.txt": "2"})
    assert files(tmp_path) == {"file"}
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["Audio"], "For example 'audio'"),
        (["vision"], "the name 'vision' is taken"),
        (["core"], "the name 'core' is taken"),
        (["audio", "--path", "full"], "is there already, expected a folder that is new or empty"),
        (["audio", "--path", "full/file"], "is there already"),
    ],
)
def test_what_new_plugin_refuses(
    tmp_path: Path, kdzoo: Run, monkeypatch: Any, words: list[str], said: str
) -> None:
    """A second plugin of a name is left out by the loader; files in a full folder would mix with others."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    monkeypatch.chdir(tmp_path)
    done = kdzoo("new-plugin", *words)
    assert done.code == 2
    assert said in done.err
    assert files(tmp_path) == {"full/file"}


def test_a_plugin_in_a_checkout_goes_where_plugins_are(tmp_path: Path, kdzoo: Run, monkeypatch: Any) -> None:
    """In the repository tests lie apart, tool settings are the root's, and every distribution has the licence."""
    for name in ("core/src/kdzoo/hookspecs.py", "plugins/vision/pyproject.toml", "LICENSE"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path / "plugins")
    done = kdzoo("new-plugin", "audio")
    assert done.code == 0, done.err
    made = files(tmp_path)
    assert {
        "plugins/audio/pyproject.toml",
        "plugins/audio/LICENSE",
        "tests/plugins/audio/test_contract.py",
    } <= made
    assert (tmp_path / "plugins/audio/LICENSE").read_text() == "LICENSE"
    project = tomllib.loads((tmp_path / "plugins/audio/pyproject.toml").read_text())
    assert project["project"]["license"] == "Apache-2.0"
    assert project["project"]["entry-points"]["kdzoo"] == {"audio": "kdzoo_audio.plugin"}
    assert "ruff" not in project["tool"]
    place = skeletons.find_place("audio", None)
    assert place.source == tmp_path / "plugins/audio/src/kdzoo_audio"
    assert place.tests == tmp_path / "tests/plugins/audio"
