"""The paper profiles of the llm plugin, two steps each, on tiny files in the layouts of the real data."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from kdzoo import catalog
from kdzoo.artefacts import Store
from kdzoo.bench import make_record
from kdzoo.errors import KdzooError
from kdzoo.plan import Plan, Request, make_plan
from kdzoo.testing.subject import Use, plugin_uses
from kdzoo.workers import Options, run_all
from kdzoo_llm.data import atomic, paper_files

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
import tiny_papers

LETTERS = "abcdefghijklmnopqrstuvwxyzPXGEN0123456789 ?:\n#</>[]Q"
TINY: dict[str, Any] = {
    "steps": 2, "teacher_steps": 0, "batch": 2, "accumulate": 1, "labelled": 6, "measured": 4, "rank": 2, "warmup": 0,
    "prompt_length": 200, "answer_length": 40, "mentor_steps": 2, "unfinished": "keep",
    "head_source": "pool", "tails": 2, "recall": 0.8, "critic_steps": 2, "critic_batch": 2, "critic_length": 120,
}  # fmt: skip
LAYOUTS = {**paper_files.DATASETS, "atomic-10x": atomic.INFO}
SEQ2SEQ = {"wmt14-en-de", "gsm8k-reasoning"}


def uses() -> list[Use]:
    """Those whose data `tiny_papers` writes; the others have readers and tests of their own."""
    cards = catalog.load()
    return [use for use in plugin_uses("llm", "paper") if set(cards.task(use[1]).data) <= set(LAYOUTS)]


def paper_tasks() -> list[str]:
    return sorted({task for _, task in uses()})


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny copy of every data set, and with models."""
    folder = tmp_path_factory.mktemp("paper-data")
    for write in tiny_papers.WRITERS.values():
        write(folder)
    tiny_papers.save_model(folder / "llama", "llama", LETTERS)
    tiny_papers.save_model(folder / "llama-other", "llama", LETTERS[::-1] + "!$%&")
    tiny_papers.save_model(folder / "t5", "t5", LETTERS)
    tiny_papers.save_model(folder / "roberta", "roberta", LETTERS)
    return folder


def plan_of(use: Use, root: Path, data_root: Path) -> Plan:
    """A plan with one seed: the tiny settings and the models in folders."""
    method, task = use
    cards = catalog.load()
    known = cards.task(task).params | cards.method(method).params
    model = str(root / ("t5" if task in SEQ2SEQ else "llama"))
    names = {"student": model, "teacher": model, "vocabulary": model, "speaker_model": model}
    names |= dict.fromkeys(("critic", "critic_vocabulary"), str(root / "roberta"))
    if known["teacher_vocabulary"].default:
        names |= dict.fromkeys(("teacher", "teacher_vocabulary"), str(root / "llama-other"))
    values = {name: value for name, value in {**TINY, **names}.items() if name in known}
    settings = tuple(f"{name}={value}" for name, value in values.items())
    return make_plan(
        Request(
            method=method,
            task=task,
            profile="paper",
            set=settings,
            data_root=str(data_root),
            arms=method,
            seeds=1,
        )
    )


@pytest.mark.parametrize("use", uses(), ids="-".join)
def test_two_steps_and_a_record(tmp_path: Path, root: Path, use: Use) -> None:
    """A paper profile that has never run fails on the user's GPUs, after hours of reading data."""
    plan = plan_of(use, root, root)
    made = run_all(plan.specs, Options(tmp_path, jobs=0), lambda *_: None)
    record = make_record(plan, made, Store(tmp_path), "kdzoo bench", {})
    assert not record.failures, [failure["error"] for failure in record.failures]
    for row in record.runs:
        assert row.status == "done", row.warnings
        assert all(m["value"] is None or math.isfinite(m["value"]) for m in row.metrics.values())
        reported = {name.removeprefix("test/") for name in row.metrics if name.startswith("test/")}
        wanted = {name for name, metric in plan.task.metrics.items() if "test" in metric.splits}
        assert row.arm == "teacher" or wanted <= reported
    assert {row.arm for row in record.runs} >= {"student", use[0]}


@pytest.mark.parametrize("task", paper_tasks())
def test_a_wrong_folder_is_one_clear_message(tmp_path: Path, root: Path, task: str) -> None:
    """An empty folder fails while planning, before any model is built, with what was found and expected."""
    method = next(method for method, name in uses() if name == task)
    with pytest.raises(KdzooError) as caught:
        plan_of((method, task), root, tmp_path)
    info = paper_files.DATASETS[next(iter(catalog.load().task(task).data))]
    for part in (str(tmp_path), "it is empty", info.layout.splitlines()[0], info.home, info.terms):
        assert part in str(caught.value)


@pytest.mark.parametrize("task", paper_tasks())
def test_the_card_tells_the_readers_layout(task: str) -> None:
    """`kdzoo show` must print the layout that the reader reads, not an older one."""
    for name, source in catalog.load().task(task).data.items():
        info = LAYOUTS[name]
        assert source.text == info.layout
        assert source.licence == info.terms
        assert info.home in source.source


@pytest.mark.parametrize("name", paper_files.DATASETS)
def test_every_split_is_read_and_none_overlaps(root: Path, name: str) -> None:
    """Rows cut from train for val must not stay in train."""
    splits = {split: paper_files.load(name, split, root) for split in ("train", "val", "test")}
    ids = [{row.id for row in rows} for rows in splits.values()]
    assert all(ids)
    assert sum(map(len, ids)) == len(set.union(*ids))
    assert all(row.answer for rows in splits.values() for row in rows)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("gsm8k", "gsm8k/train.jsonl", '{"question": "q"}\n'),
        ("squad", "squad/train-v1.1.json", '{"data": [{}]}'),
        ("wmt14-en-de", "wmt14-en-de/train.de", "one line\n"),
        (
            "atomic-2020",
            "atomic2020_data-feb2021/train.tsv",
            "PersonX naps\txWant\tto rest\nPersonX naps\txWant\n",
        ),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, file: str, content: str) -> None:
    """A half-downloaded file must not become a smaller training set."""
    tiny_papers.WRITERS[name](tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(KdzooError, match="cannot be read"):
        paper_files.load(name, "train", tmp_path)
