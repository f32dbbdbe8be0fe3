"""Rules of the house that no linter knows: sizes, names, places, and that every method is complete."""

from __future__ import annotations

import ast
import fnmatch
from pathlib import Path

import pytest

from kdzoo import catalog

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("core", "plugins", "benchmarks", "tests", "tools")
TOP_LEVEL = {
    "pyproject.toml",
    "core",
    "plugins",
    "benchmarks",
    "tests",
    "tools",
    "docs",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    ".ci",
    ".gitignore",
}

# What `kdzoo --help` and `kdzoo list` import: heavy libraries would be paid for at every start.
LIGHT = (
    "hookspecs",
    "plugins",
    "catalog",
    "cards",
    "errors",
    "settings",
    "builtin",
    "method",
    "task",
    "arms",
    "signal_choice",
)
HEAVY = {"torch", "numpy", "scipy", "torchvision", "timm", "accelerate", "safetensors", "sklearn", "PIL"}


def sources() -> list[Path]:
    """All Python files of the repository, without what tools have left in ignored folders."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return [path for path in files if not {"build", "dist", ".venv"} & set(path.relative_to(ROOT).parts)]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def methods() -> list[Path]:
    """Cards of the methods that live in this repository."""
    return sorted(ROOT.glob("plugins/*/src/*/methods/*.toml"))


def test_top_level():
    """Would catch a stray file or folder at the top of the repository, or one that is missing."""
    ignored = (ROOT / ".gitignore").read_text().split()
    patterns = [pattern.rstrip("/") for pattern in ignored]
    found = {
        path.name
        for path in ROOT.iterdir()
        if path.name != ".git" and not any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
    }
    assert found == TOP_LEVEL


def test_files_are_short():
    """Would catch a file that has grown beyond what is read in one go."""
    long = {name(path): n for path in sources() if (n := len(path.read_text().splitlines())) > 500}
    assert not long


def test_no_file_called_utils():
    """Would catch the module where things go that have no place."""
    assert not [
        name(path) for path in sources() if path.stem in ("utils", "util", "helpers", "misc", "common")
    ]


def test_kl_div_is_written_once():
    """Would catch a second, hidden form of the KL divergence, with another axis, reduction or temperature."""
    home = ROOT / "core/src/kdzoo/losses"
    users = [
        name(path)
        for path in sources()
        if home not in path.parents and (ROOT / "tests") not in path.parents and calls(path, "kl_div")
    ]
    # A speed comparison needs the textbook form to compare with.
    assert not [user for user in users if not user.startswith("benchmarks/speed/")]


def calls(path: Path, function: str) -> bool:
    """Whether a file calls a function of this name, bare or as an attribute."""
    nodes = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return any(
        (isinstance(node, ast.Attribute) and node.attr == function)
        or (isinstance(node, ast.Name) and node.id == function)
        for node in nodes
    )


def light_modules() -> list[Path]:
    core = ROOT / "core/src/kdzoo"
    registration = sorted(ROOT.glob("plugins/*/src/*/plugin.py"))
    return [core / f"{module}.py" for module in LIGHT] + sorted((core / "cli").glob("*.py")) + registration


@pytest.mark.parametrize("path", light_modules(), ids=name)
def test_light_modules_import_nothing_heavy(path: Path):
    """Would catch a heavy import at the top of a module that every start of the command line imports."""
    assert not top_level_imports(ast.parse(path.read_text())) & HEAVY


def top_level_imports(tree: ast.Module) -> set[str]:
    """First parts of the names imported when the module is imported: outside functions and TYPE_CHECKING."""
    found: set[str] = set()
    todo: list[ast.stmt] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            todo += [child for child in ast.walk(node) if isinstance(child, ast.Import | ast.ImportFrom)]
    return found


def test_core_imports_no_plugin():
    """Would catch an arrow that points the wrong way."""
    plugins = {path.name for path in ROOT.glob("plugins/*/src/*") if (path / "plugin.py").exists()}
    assert plugins
    for path in (ROOT / "core/src").rglob("*.py"):
        assert not imports(path) & plugins, name(path)


def test_methods_import_no_other_method():
    """Would catch shared mathematics that belongs in kdzoo.losses."""
    for card in methods():
        module = card.with_name(f"{card.stem.replace('-', '_')}.py")
        tree = ast.parse(module.read_text())
        named = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [other for other in named if ".methods" in other], name(module)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("card", methods(), ids=lambda path: path.stem)
def test_method_is_complete(card: Path):
    """Would catch a method without its module, its page, or the record of its default task."""
    cards = catalog.collect([card.parent.with_name("tasks"), card.parent])
    method = cards.method(card.stem)
    assert card.with_name(f"{card.stem.replace('-', '_')}.py").exists()
    assert (ROOT / f"docs/methods/{card.stem}.md").exists()
    local = [task for task, use in method.tasks.items() if use.profile == "local" and use.default]
    assert local
    missing = [t for t in local if not (ROOT / f"benchmarks/results/{card.stem}.{t}.json").exists()]
    assert not missing, "make it with the command that 'python tools/make_docs.py --records' prints"


@pytest.mark.parametrize(
    "folder", ["core", *sorted(f"plugins/{p.name}" for p in (ROOT / "plugins").iterdir())]
)
def test_every_distribution_carries_the_licence(folder: str):
    """Would catch a wheel whose licence differs from the repository's: the files cannot be shared by a link."""
    assert (ROOT / folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
