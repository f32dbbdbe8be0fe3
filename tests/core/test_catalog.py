"""The catalogue: cards by slug, facets and globs, broken cards set apart, and the cache of what was read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kdzoo import card_cache, catalog, plugins
from kdzoo.errors import KdzooError

SWITCH = '[switches.soft]\noff = { kd_weight = 0 }\ncomponent = "C1"\n'
ARM = '[arms."toy-kd.hot"]\ntext = "hotter"\n'


def folders(package: Path) -> list[Path]:
    return [package / "methods", package / "tasks"]


def test_a_broken_card_harms_no_other(write_cards: Any, plugged: Any, kdzoo: Any) -> None:
    """``kdzoo list`` shows what works on stdout and names what is broken on stderr, in one line."""
    package = write_cards()
    (package / "methods" / "other-kd.toml").write_text("sumary = 1\n")
    paths = [str(folder) for folder in folders(package)]
    plugged(toy=f"from pathlib import Path\n@hookimpl\ndef cards(): return [Path(p) for p in {paths}]")
    outcome = kdzoo("list")
    assert outcome.code == 0
    assert outcome.out.splitlines()[1].startswith("toy-kd  toy")
    assert len(outcome.out.splitlines()) == 2
    assert outcome.err.count("broken: ") == 1
    assert outcome.err.startswith("broken: card other-kd.toml: unknown key 'sumary'")
    shown = kdzoo("show", "other-kd")
    assert shown.code == 2
    assert "card other-kd.toml: unknown key 'sumary'" in shown.err
    assert "Traceback" not in shown.err
    assert kdzoo("show", "toy-kd").code == 0


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (
            ("default = true", "default = true\nset = { stepz = 3 }"),
            "unknown setting 'stepz'. Did you mean steps",
        ),
        (
            ("default = true", "default = true\nset = { steps = 0 }"),
            "tasks.toy-task.set.steps: got 0, expected at",
        ),
        (
            ("default = true", "default = true\nbench = { lr = -1.0 }"),
            "tasks.toy-task.bench.lr: got -1.0, expected at",
        ),
        (SWITCH.replace("kd_weight", "kd_wait"), "unknown setting 'kd_wait'. Did you mean kd_weight"),
        (ARM + "set = { lr = 'high' }\n", "arms.toy-kd.hot.set.lr: got 'high' (str), expected float"),
        (ARM + "grid = { lr = [0.1, -0.1] }\n", "arms.toy-kd.hot.grid.lr: got -0.1, expected at least 0"),
        (ARM + "grid = { lrr = [0.1] }\n", "unknown setting 'lrr'. Did you mean lr"),
        (("kd_weight = {", "steps = {"), "it and task 'toy-task' both define the setting 'steps'"),
    ],
)
def test_what_a_method_sets_exists_in_the_task(write_cards: Any, method: Any, expected: str) -> None:
    """A misspelt setting of an arm would give an ablation that ablates nothing."""
    found = catalog.collect(folders(write_cards(method=method)))
    assert "toy-kd" not in found.methods
    assert found.broken["toy-kd"].startswith("card toy-kd.toml: ")
    assert expected in found.broken["toy-kd"]
    with pytest.raises(KdzooError, match=r"card toy-kd\.toml"):
        found.method("toy-kd")


def test_a_setting_of_another_tasks_arm_is_not_asked_here(write_cards: Any) -> None:
    """An arm that exists on another task only may set what only that task defines."""
    arm = ARM + 'set = { only_there = 1 }\ntasks = ["elsewhere"]\n'
    found = catalog.collect(folders(write_cards(method=arm + "[tasks.elsewhere]\n")))
    assert not found.broken


def test_two_cards_of_one_slug(write_cards: Any, tmp_path: Path) -> None:
    """Which of two cards is meant would depend on the order of plugins."""
    package = write_cards()
    other = tmp_path / "other" / "methods"
    other.mkdir(parents=True)
    (other / "toy-kd.toml").write_text((package / "methods" / "toy-kd.toml").read_text())
    found = catalog.collect([*folders(package), other])
    with pytest.raises(KdzooError, match="two cards have the slug 'toy-kd'"):
        found.method("toy-kd")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """A plugin packaged without its cards would bring no method, without a word."""
    (tmp_path / "cards").mkdir()
    found = catalog.collect([tmp_path / "methods", tmp_path / "cards"])
    assert len(found.broken) == 2
    assert all("expected one called tasks or methods" in why for why in found.broken.values())


def test_unknown_names_get_suggestions(write_cards: Any) -> None:
    """Up to three names that are near, and the command that lists all."""
    found = catalog.collect(folders(write_cards()))
    with pytest.raises(KdzooError, match=r"unknown method 'toy-kdd'\. Did you mean toy-kd\? 'kdzoo list'"):
        found.method("toy-kdd")
    with pytest.raises(
        KdzooError, match=r"unknown task 'toy'\. Did you mean toy-task\? 'kdzoo list --tasks'"
    ):
        found.task("toy")


def test_an_unknown_method_points_to_broken_plugins(plugged: Any) -> None:
    """The method may be missing because its plugin does not load."""
    plugged(bad="import no_such_package_at_all")
    with pytest.raises(
        KdzooError, match=r"unknown method 'rkd'.*Broken plugins: plugin 'bad'.*no_such_package"
    ):
        catalog.load().method("rkd")


def test_select_by_glob_and_facets(write_cards: Any) -> None:
    """All filters hold together; an unknown value is an error, not an empty list."""
    found = catalog.collect(folders(write_cards()))

    def slugs(pattern: str = "*", **facets: str) -> list[str]:
        return [card.slug for card in found.select(pattern, facets)]

    assert slugs() == slugs("toy-*") == slugs("t?y-kd") == ["toy-kd"]
    assert slugs("x*") == []
    for facet in catalog.FACETS:
        value = sorted(catalog.facet_values(found.methods["toy-kd"], facet))[0]
        assert slugs(**{facet: value}) == ["toy-kd"]
        with pytest.raises(KdzooError, match=f"unknown {facet} 'nonsense'"):
            slugs(**{facet: "nonsense"})
    assert slugs("x*", scheme="offline") == []


# --- modules beside cards -----------------------------------------------------------------------------------------


def test_module_name(write_cards: Any) -> None:
    """Hyphens of the card become underscores of the module; the packages around it are found by their files."""
    package = write_cards()
    assert catalog.module_name(package / "methods" / "toy-kd.toml") == "toy_cards.methods.toy_kd"
    assert catalog.module_name(Path("/nowhere/at/all/my-own-kd.toml")) == "my_own_kd"


def test_module_of_a_card(write_cards: Any) -> None:
    """A card without its module, or a module without its dependency, ends in what to do, not in an ImportError."""
    package = write_cards(modules=False)
    found = catalog.collect(folders(package))
    with pytest.raises(
        KdzooError, match=r"toy-kd\.toml has no module: expected toy_cards\.methods\.toy_kd beside it"
    ):
        found.module("toy-kd")
    path = package / "methods" / "toy_kd.py"
    path.write_text("import no_such_package_at_all")
    with pytest.raises(KdzooError, match=r"toy-kd needs the package 'no_such_package_at_all'.*kdzoo-toy"):
        found.module("toy-kd")
    path.write_text("answer = 42")
    os.utime(path, (1, 1))
    assert found.module("toy-kd").answer == 42


def test_every_installed_card_is_whole_and_has_its_module(home: Path) -> None:
    """What ships must load: cards, their modules' files, tasks that exist, a baseline that exists."""
    plugins.load.cache_clear()
    catalog.load.cache_clear()
    found = catalog.load()
    assert not found.broken
    assert found.methods
    for slug, path in found.paths.items():
        assert path.with_name(f"{slug.replace('-', '_')}.py").exists(), f"{slug} has a card and no module"
    for card in found.methods.values():
        assert card.plugin in plugins.load().found
        assert not card.tasks.keys() - found.tasks.keys(), f"{card.slug} names tasks that do not exist"
        for name, use in card.tasks.items():
            assert use.profile == found.tasks[name].profile, f"{card.slug} and {name} are of two profiles"
    for task in found.tasks.values():
        if not isinstance(task.kd, str):
            assert task.kd.method in found.methods
            assert not task.kd.set.keys() - {*task.params, *found.methods[task.kd.method].params}


# --- the cache ----------------------------------------------------------------------------------------------------


def read_all(file: Path, package: Path) -> tuple[catalog.Catalog, card_cache.CardCache]:
    cache = card_cache.CardCache(file)
    found = catalog.collect(folders(package), cache.read)
    cache.save()
    return found, cache


def test_the_cache_gives_back_what_was_read(
    write_cards: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card from the cache equals the card from the file, and no file is read for it."""
    package, file = write_cards(method=SWITCH + ARM), tmp_path / "home" / "cards.msgpack"
    first, _ = read_all(file, package)
    monkeypatch.setattr(
        card_cache.cards, "read", lambda *_: pytest.fail("a card was read although it is cached")
    )
    second, cache = read_all(file, package)
    assert second.methods == first.methods
    assert second.tasks == first.tasks
    assert not cache.changed


def test_a_changed_card_is_read_anew(write_cards: Any, tmp_path: Path) -> None:
    """A card that was edited must not show its old self."""
    package, file = write_cards(), tmp_path / "cards.msgpack"
    read_all(file, package)
    path = package / "methods" / "toy-kd.toml"
    stamp = path.stat()
    path.write_text(path.read_text().replace("Toy distillation", "Toy distillatioN"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # same size, same modification time
    found, _ = read_all(file, package)
    assert found.methods["toy-kd"].title == "Toy distillatioN"


def test_a_card_that_broke_is_not_served_from_the_cache(write_cards: Any, tmp_path: Path) -> None:
    """Nor is a broken card remembered as whole once it is mended."""
    package, file = write_cards(), tmp_path / "cards.msgpack"
    read_all(file, package)
    path = package / "methods" / "toy-kd.toml"
    whole = path.read_text()
    path.write_text(whole + "\nnonsense = 1\n")
    assert "toy-kd" in read_all(file, package)[0].broken
    path.write_text(whole)
    assert not read_all(file, package)[0].broken


def test_cards_that_are_gone_leave_the_cache(write_cards: Any, tmp_path: Path) -> None:
    """The file must not grow for ever; cards of plugins that are merely left out this time stay."""
    package, file = write_cards(), tmp_path / "cards.msgpack"
    read_all(file, package)
    (package / "methods" / "toy-kd.toml").unlink()
    (package / "tasks" / "toy-task.toml").touch()
    _, cache = read_all(file, package)
    assert not cache.stored.methods
    assert len(cache.stored.tasks) == 1


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"\x93\x01\x02\x03", b"\x81\xa4code\x90"])
def test_a_damaged_cache_is_ignored(write_cards: Any, tmp_path: Path, content: bytes) -> None:
    """A cache is never worth an error."""
    package, file = write_cards(), tmp_path / "cards.msgpack"
    file.write_bytes(content)
    assert list(read_all(file, package)[0].methods) == ["toy-kd"]
    assert not read_all(file, package)[1].changed


def test_another_code_reads_all_cards_anew(
    write_cards: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new check must see the cards that an older version let pass."""
    package, file = write_cards(), tmp_path / "cards.msgpack"
    read_all(file, package)
    other = tmp_path / "claim_rows.py"
    other.write_text("")
    monkeypatch.setattr(card_cache.claim_rows, "__file__", str(other))
    assert read_all(file, package)[1].changed


@pytest.mark.parametrize("where", ["/proc/kdzoo", "/dev/null/kdzoo"])
def test_a_cache_that_cannot_be_written_says_nothing(
    write_cards: Any, plugged: Any, kdzoo: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """``kdzoo list`` works from a read-only home."""
    plugged(
        toy=f"from pathlib import Path\n@hookimpl\ndef cards(): return [Path({str(write_cards() / 'methods')!r})]"
    )
    monkeypatch.setenv("KDZOO_HOME", where)
    outcome = kdzoo("list")
    assert (outcome.code, outcome.err) == (0, "")
    assert "toy-kd" in outcome.out
