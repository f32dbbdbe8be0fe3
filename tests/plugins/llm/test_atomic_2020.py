"""Events of ATOMIC 2020 and what people judged of them: readers, prompts, names, and the clear errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from kdzoo import execute
from kdzoo.artefacts import Store
from kdzoo.errors import KdzooError
from kdzoo.plan import Request as Bench
from kdzoo.plan import make_plan
from kdzoo.runs import Run
from kdzoo.speakers.speech import Generation, Reply
from kdzoo_llm import critics
from kdzoo_llm.data import atomic, events
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.triple_prompts import asked, prompt_of
from kdzoo_llm.methods import symbolic_kd
from kdzoo_llm.tasks import atomic_2020
from kdzoo_llm.tasks.atomic_2020 import Events
from kdzoo_llm.triples import Triple
from kdzoo_llm.vocabularies import open_vocabulary

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
import tiny_papers

LABELLED = f"symbolic-knowledge-distillation/{atomic.LABELLED}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tiny_papers.write_atomic(tmp_path)
    tiny_papers.save_model(tmp_path / "llama", "llama", "abcdefghijklmnopqrstuvwxyzPXY0123456789 .:?\n")
    return tmp_path


def opened(root: Path, stage: str, *given: str, arm: str = "symbolic-kd") -> Run:
    model = str(root / "llama")
    names = ("student", "vocabulary", "speaker_model", "critic_vocabulary")
    small = (
        "critic=small",
        "critic_separators=1",
        "prompt_length=200",
        "measured=4",
        "labelled=6",
        "answer_length=40",
    )
    given = (*(f"{name}={model}" for name in names), *small, *given)
    plan = make_plan(
        Bench(
            "symbolic-kd", profile="paper", arms="symbolic-kd", seeds=1, set=given, data_root=str(root)
        )
    )  # fmt: skip
    spec = next(spec for spec in plan.runs[arm, 0] if spec.stage.name == stage)
    run = execute.open_run(spec, Store(root / "store"), root / stage)
    run.folder.mkdir(exist_ok=True)
    run.inputs = {}
    return run


def corpus(root: Path, rows: list[Triple]) -> Path:
    """What the stage `tails` leaves."""
    folder = root / "corpus"
    folder.mkdir()
    replies = [Reply(f"{t.head}/{t.relation}", (Generation(t.tail, logprobs=[-1.0]),)) for t in rows]
    (folder / "answers.jsonl").write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in replies))
    return folder


# --- files ----------------------------------------------------------------------------------------------------------


def test_judgements_that_are_missing_are_one_clear_message(root: Path) -> None:
    """Without labels nothing could be filtered; the run must end before a teacher is paid."""
    (root / LABELLED).unlink()
    with pytest.raises(KdzooError) as caught:
        opened(root, "tails")
    for part in (atomic.LABELLED, atomic.CORPUS, "have triples judged", atomic.INFO.home, atomic.INFO.terms):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"head": "PersonX naps", "relation": "xWant", "split": "train", "valid": 1}', "tail"),
        ('{"head": "PersonX naps", "relation": "xWant", "tail": "to", "split": "dev", "valid": 1}', "'dev'"),
        (
            '{"head": "PersonX naps", "relation": "xWant", "tail": "to", "split": "val", "valid": "yes"}',
            "valid",
        ),
        ("PersonX naps", "JSON"),
    ],
)
def test_a_malformed_judgement_is_named_by_its_line(root: Path, line: str, problem: str) -> None:
    """A line that is left out in silence would be a label less."""
    with (root / LABELLED).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(KdzooError, match=r"line 41 of .* is not of its form") as caught:
        atomic.judgements(root)
    assert problem in str(caught.value)


def test_a_part_of_one_class_is_refused(root: Path) -> None:
    """A cut-off by the recall of valid ones would have no meaning."""
    rows = [json.loads(line) for line in (root / LABELLED).read_text().splitlines()]
    kept = [row for row in rows if row["split"] != "val" or row["valid"] > 0]
    (root / LABELLED).write_text("\n".join(map(json.dumps, kept)))
    with pytest.raises(KdzooError, match="only valid ones in the split 'val'"):
        atomic.judgements(root)


def test_the_whole_corpus_may_stand_for_its_labelled_part(root: Path) -> None:
    """Lines that nobody judged have no label, or null; other relations of later releases do not count."""
    rows = [json.loads(line) for line in (root / LABELLED).read_text().splitlines()]
    (root / LABELLED).unlink()
    others = [{**rows[0], "valid": None}, {**rows[0], "relation": "oWant"}]
    others.append({name: value for name, value in rows[0].items() if name != "valid"})
    text = "\n".join(
        json.dumps({**row, "inference": row["tail"], "rec_0.5": True}) for row in [*rows, *others]
    )
    (root / LABELLED).with_name(atomic.CORPUS).write_text(text)
    assert len(atomic.judgements(root)) == len(rows)
    assert [row.valid for row in atomic.judgements(root)[:4]] == [True, False, True, False]


def test_new_judgements_make_a_new_critic(root: Path) -> None:
    """A corrected label must not be answered from an old artefact."""
    before = opened(root, "critic").spec.key
    with (root / LABELLED).open("a") as file:
        row = {"head": "PersonX naps", "relation": "xWant", "tail": "to rest", "split": "train", "valid": 2}
        file.write(json.dumps(row) + "\n")
    atomic.judgements_hash.cache_clear()
    assert opened(root, "critic").spec.key != before


def test_a_triple_is_judged_in_one_part_only(root: Path) -> None:
    """One that the critic was fitted to makes the cut-off too high."""
    held = json.loads((root / LABELLED).read_text().splitlines()[-2])
    with (root / LABELLED).open("a") as file:
        file.write(json.dumps({**held, "split": "train"}) + "\n")
    parts = Events(root).judged([], 10_000)
    assert [len(parts[part]) for part in atomic.PARTS] == [16, 12, 12]
    assert held["head"] in {triple.head for triple in parts["test"]}
    assert [len(some) for some in Events(root).judged([], 10).values()] == [4, 3, 3]


# --- prompts and names ----------------------------------------------------------------------------------------------


def test_a_prompt_is_read_back() -> None:
    """Head and relation of a row are known from its prompt only."""
    assert asked(prompt_of("PersonX naps", "xWant")) == ("PersonX naps", "xWant")
    with pytest.raises(KdzooError, match="is no prompt"):
        asked("PersonX naps")


def test_persons_have_names_where_text_is_read_and_none_in_the_corpus() -> None:
    """A critic would learn names by heart; a student would write of Alex."""
    shown = [Example("0", prompt_of("PersonX calls PersonY", "xWant"), "to talk to PersonY")]
    prompt = events.tail_prompt("PersonX helps PersonY", "xWant", shown)
    assert "Person" not in prompt
    assert prompt.splitlines()[-1] == "2. Alex helps Chris. As a result, Alex wants"
    assert (
        events.unnamed(" to thank Alex, not Chris or Alexander")
        == " to thank PersonX, not PersonY or Alexander"
    )
    ways = events.said_in_ways("PersonX helps PersonY", "xReact", "good", 16)
    assert len(set(ways)) > 8
    for head, said in ways:
        x, y = head.split(" helps ")
        assert x != y
        assert said == f"as a result, {x} feels good"
    assert events.said_in_ways("PersonX helps PersonY", "xReact", "good", 5) == ways[:5]


def test_only_events_of_training_are_asked_about(root: Path) -> None:
    """One of the test would be learnt before it is asked for."""
    known = Events(root)
    assert list(known.asked_of("PersonX naps")) == list(events.RELATIONS)
    for head in (
        "PersonX wants the house is old",
        "PersonX has the cat is big",
        "PersonX sees ___",
        "rain falls",
    ):
        assert not known.asked_of(head)
    assert set(known.pool()) == {f"PersonX sees {thing}" for thing, _ in tiny_papers.PAIRS}


def test_the_separators_between_two_texts() -> None:
    """RoBERTa was trained on pairs with two; the side changes behind them."""
    vocabulary = open_vocabulary("words:relations")
    pair = [[("air horn", "is a alarm")]]
    one, two = (critics.Pairs(["a"], pair, [1], vocabulary, 48, between).view([0], [0]) for between in (1, 2))
    end = vocabulary.eos
    assert two["ids"][0].tolist().count(end) == one["ids"][0].tolist().count(end) + 1
    assert torch.equal(two["ids"][two["side"] == 1], one["ids"][one["side"] == 1])


# --- the method -----------------------------------------------------------------------------------------------------


def test_a_local_teacher_writes_events_and_is_told_if_none_can_be_asked(root: Path) -> None:
    """A model that keeps to no form would give an empty corpus after hours."""
    heads = opened(root, "heads", "seeds=10", "head_prompts=2", "head_samples=2", "speaker_context=1000")
    symbolic_kd.write_heads(heads)
    tails = opened(root, "tails")
    tails.inputs = {"heads": heads.folder}
    with pytest.raises(KdzooError, match="none is known to the task or of the form"):
        symbolic_kd.write_tails(tails)


def test_no_program_speaks_of_events(root: Path) -> None:
    """A scripted teacher exists in the closed world only."""
    with pytest.raises(KdzooError, match="no program knows events"):
        symbolic_kd.write_heads(opened(root, "heads", "speaker=scripted", "seeds=10"))


def test_the_likelihood_cannot_filter_by_what_another_teacher_wrote(root: Path) -> None:
    """The judged triples have no probability under this one."""
    run = opened(root, "fit", "filter=likelihood")
    run.inputs = {"tails": corpus(root, [Triple("PersonX naps", "xWant", "to rest", None)])}
    with pytest.raises(KdzooError, match="another teacher wrote"):
        symbolic_kd.filtered(run)


def test_what_people_judged_stands_for_the_corpus(root: Path) -> None:
    """By hand: all judged ones of val and test count, half of them are valid; the critic's own do not."""
    run = opened(root, "fit", "filter=none")
    rows = [Triple("PersonX naps", "xWant", tail, None) for tail in ("to rest", "to see Alex", "to rest.")]
    run.inputs = {"tails": corpus(root, rows)}
    assert [triple.tail for triple in symbolic_kd.corpus_of(run)] == ["to rest", "to see PersonX"]
    found = symbolic_kd.measured(run)
    assert found["corpus/size"] == [2, 2]
    assert found["corpus/distinct"] == [2, 2]
    assert found["corpus/acceptance"] == [12 / 24, 24]


# --- what people say of what was written ----------------------------------------------------------------------------


def written(root: Path, *given: str) -> tuple[Run, list[str]]:
    """A last stage, and what a student wrote for its rows."""
    run = opened(root, "evaluate", *given)
    run.split_open.add("test")
    return run, ["to test.", "to be old", "naps", "to test\nmore"]


def test_what_was_written_is_compared_and_left_for_people(root: Path) -> None:
    """All references of a row count; without people there is no acceptance, and none is made up."""
    run, texts = written(root)
    found = atomic_2020.judge(run, texts, "test")
    items = run.data("test").items.examples
    known = [text.split("\n")[0].strip(".") in ("to test", "to be old") for text in texts]
    known[1] = asked(items[1].prompt)[1] == "xWant"
    assert found["matched"].items is not None
    assert found["matched"].items.tolist() == list(map(float, known))
    assert found["distinct"].value == 3
    assert found["acceptance"].value is None
    lines = [json.loads(line) for line in (run.folder / "written.jsonl").read_text().splitlines()]
    assert [line["tail"] for line in lines] == ["to test", "to be old", "naps", "to test"]
    assert all(line["valid"] is None for line in lines)


def test_peoples_judgements_are_the_acceptance(root: Path) -> None:
    """A share of what somebody chose to judge would look like one of all."""
    run, texts = written(root)
    atomic_2020.judge(run, texts, "test")
    lines = [json.loads(line) for line in (run.folder / "written.jsonl").read_text().splitlines()]
    told = root / "told.jsonl"
    told.write_text("\n".join(json.dumps({**line, "valid": i % 2}) for i, line in enumerate(lines)))
    run, texts = written(root, f"eval.judgements={told}")
    assert atomic_2020.judge(run, texts, "test")["acceptance"].value == 0.5
    told.write_text("\n".join(json.dumps({**line, "valid": 1}) for line in lines[:3]))
    with pytest.raises(KdzooError, match="judges 3 of 4 triples"):
        atomic_2020.judge(run, texts, "test")
    run, texts = written(root, "eval.judgements=nowhere.jsonl")
    with pytest.raises(KdzooError, match="there is no such file"):
        atomic_2020.judge(run, texts, "test")


def test_the_teacher_answers_the_test_itself(root: Path) -> None:
    """The arm `symbolic-kd.speaker` has no student; its texts are the teacher's, names turned back."""
    run = opened(root, "evaluate", "eval.writer=speaker", "speaker_context=1000")
    run.split_open.add("test")
    found = atomic_2020.evaluate(run, "test")
    assert found["matched"].n == 4
    assert len((run.folder / "answers.jsonl").read_text().splitlines()) == 4
