"""The stages of symbolic-kd: who may learn from what, and what is kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdzoo import catalog
from kdzoo.errors import KdzooError
from kdzoo.method import Batch, Output
from kdzoo.settings import Settings, resolve
from kdzoo.speakers.scripted import ScriptedSpeaker
from kdzoo_llm import triples
from kdzoo_llm.methods import symbolic_kd as method
from kdzoo_llm.triples import Triple

CARDS = catalog.load()


def settings(**changes: Any) -> Settings:
    return Settings(resolve(CARDS.task("word-relations"), CARDS.method("symbolic-kd"), {}, changes))


def names(**changes: Any) -> list[str]:
    return [stage.name for stage in method.plan(settings(**changes))]


def test_an_arm_has_the_stages_that_it_needs() -> None:
    """An ablation that still trains the critic costs, and would be charged for, what it does not use."""
    whole = ["questions", "tails", "labels", "critic", "scores", "filter", "fit", "evaluate"]
    assert names() == whole
    assert names(filter="none") == ["questions", "tails", "filter", "fit", "evaluate"]
    assert names(filter="likelihood") == ["questions", "tails", "labels", "filter", "fit", "evaluate"]
    assert names(heads="given") == whole[1:]


def test_levels_of_recall_share_a_critic() -> None:
    """A critic for each level would be trained again, to the same weights."""
    low, high = (
        {stage.name: stage for stage in method.plan(settings(recall=recall))} for recall in (0.8, 0.5)
    )
    for name in ("questions", "tails", "labels", "critic", "scores"):
        assert low[name] == high[name]
        assert "recall" not in Settings(settings(), low[name].reads)


def test_impossible_arms_are_refused() -> None:
    """Another architecture cannot hold the teacher's weights; passes over one form are one pass."""
    with pytest.raises(KdzooError, match="weights do not fit another architecture"):
        method.plan(settings(critic="llama-xs"))
    assert "critic" in names(critic="llama-xs", critic_start="random")
    with pytest.raises(KdzooError, match="without other surface forms all passes are one"):
        method.plan(settings(surfaces=False))


def test_a_task_without_questions_is_refused() -> None:
    """The first stage would fail inside of a task's module, without a word on what is missing."""
    with pytest.raises(KdzooError, match="'rule-reading' lacks seeds, parse, reserved, surface"):
        method._task(SimpleNamespace(spec=SimpleNamespace(task="rule-reading")))


# --- a corpus of three heads a split, true and false ------------------------------------------------------------------

TRUE = [
    ("dog", "animal"),
    ("tree", "plant"),
    ("walk", "move"),
    ("whisper", "talk"),
    ("cat", "animal"),
    ("boat", "craft"),
]


def corpus() -> list[Triple]:
    """36 triples, every second one true, scores falling with their place."""
    found = []
    for k, split in enumerate(["train"] * 20 + ["val"] * 8 + ["test"] * 8):
        head, tail = TRUE[k // 2 % 4]
        question = f"{head} (thing number {'abcdefghijklmnopqrstuvwxyz'[k // 2]}) is a kind of"
        facts = {"head": head, "relation": "hypernym"}
        found.append(Triple(question, tail if k % 2 == 0 else "window", facts, -float(k), split))
    return found


def run_of(tmp_path: Path, stage: str, **cfg: Any) -> Any:
    folders = {name: tmp_path / name for name in ("tails", "labels", "scores", "filter", "fit")}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    spent: dict[str, float] = {}
    return SimpleNamespace(
        spec=SimpleNamespace(task="word-relations"),
        stage=stage,
        cfg=settings(**cfg),
        inputs=folders,
        folder=folders.get(stage, tmp_path),
        facts={},
        spent=spent,
        spend=lambda kind, amount: spent.__setitem__(kind, amount),
        device_info=SimpleNamespace(main=True, ranks=1),
    )


def prepared(tmp_path: Path, found: list[Triple], scores: list[float] | None = None) -> None:
    run = run_of(tmp_path, "labels", labels=1000)
    triples.write(run.inputs["tails"] / "triples.json", found)
    method.label(run)
    if scores is not None:
        triples.write(run.inputs["scores"] / "scores.json", scores)


def kept(tmp_path: Path) -> list[list[str]]:
    said: list[list[str]] = triples.read(tmp_path / "filter" / "corpus.json", list[list[str]])
    return said


def test_labels_are_the_truth_and_cost(tmp_path: Path) -> None:
    """A judge that is asked about others than the sample, or for nothing, makes the budget of labels a lie."""
    run = run_of(tmp_path, "labels", labels=10)
    triples.write(run.inputs["tails"] / "triples.json", corpus())
    method.label(run)
    said = triples.read(tmp_path / "labels" / "labels.json", dict[str, bool])
    assert len(said) == 10
    assert run.spent == {"human_labels": 10}
    assert all(valid == (int(place) % 2 == 0) for place, valid in said.items())


def test_a_perfect_critic_keeps_the_best_half(tmp_path: Path) -> None:
    """A cut-off that is taken from the training heads, or kept items below it, would show here."""
    found = corpus()
    scores = [(0.9 if k % 2 == 0 else 0.1) - k**2 / 10_000 for k in range(len(found))]
    prepared(tmp_path, found, scores)
    run = run_of(tmp_path, "filter", recall=0.5)
    method.keep(run)
    # Val: true ones at 20, 22, 24, 26, cut at the second of four (0.9 - 0.0484); test: at 28, ..., cut 0.9 - 0.09.
    cut = 0.9 - 0.0692
    assert method.cutoff(run, found, torch.tensor(scores), 0.5) == pytest.approx(cut)
    assert kept(tmp_path) == [[one.question, one.tail] for k, one in enumerate(found[:20]) if k % 2 == 0]
    said = triples.read(tmp_path / "filter" / "summary.json", dict[str, float])
    assert said["acceptance"] == 1
    assert said["average_precision"] == pytest.approx(1)
    assert (said["size"], said["held_out"], said["distinct"]) == (10, 16, 4)
    assert said["recall"] == pytest.approx(4 / 8)  # of 20, ..., 34 those above the cut-off: 20 to 26


def test_nothing_is_filtered_without_a_filter(tmp_path: Path) -> None:
    """The whole corpus is the arm that the filter is held against; held-out heads stay out of both."""
    prepared(tmp_path, corpus())
    method.keep(run_of(tmp_path, "filter", filter="none"))
    said = triples.read(tmp_path / "filter" / "summary.json", dict[str, float])
    assert (said["size"], said["acceptance"]) == (20, 0.5)
    assert "average_precision" not in said


def test_likelihood_ranks_by_the_teacher(tmp_path: Path) -> None:
    """The ablation would be the critic's arm, or random, if it read other scores."""
    prepared(tmp_path, corpus())
    method.keep(run_of(tmp_path, "filter", filter="likelihood", recall=0.5))
    assert len(kept(tmp_path)) == 20  # all training heads have larger log-probabilities than the cut-off's


def test_the_control_has_no_true_tail_left(tmp_path: Path) -> None:
    """A control that is not worse says that tails do not matter."""
    prepared(tmp_path, corpus())
    method.keep(run_of(tmp_path, "filter", filter="none", exchanged=True))
    said = triples.read(tmp_path / "filter" / "summary.json", dict[str, float])
    assert said["size"] == 20
    assert said["acceptance"] < 0.5


def test_labels_of_one_kind_are_refused(tmp_path: Path) -> None:
    """A critic of true triples alone learns to say yes, and no cut-off follows from them."""
    prepared(tmp_path, [one for k, one in enumerate(corpus()) if k % 2 == 0], [0.5] * 18)
    with pytest.raises(KdzooError, match="of 4 labelled triples of val, 4 are valid: valid and invalid ones"):
        method.keep(run_of(tmp_path, "filter"))


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    """Stages after it would fail far from the cause."""
    run = run_of(tmp_path, "labels")
    triples.write(run.inputs["tails"] / "triples.json", [])
    with pytest.raises(KdzooError, match="the teacher wrote no usable tail"):
        method.label(run)


def test_the_critic_reads_training_heads_in_several_forms(tmp_path: Path) -> None:
    """Held-out heads in its data would make precision at recall a training score."""
    prepared(tmp_path, corpus(), [0.5] * 36)
    served = method.data(run_of(tmp_path, "critic"), "train")
    assert served is not None
    assert list(served.ids) == [f"labelled/{k}" for k in range(20)]
    rows = torch.tensor([0, 1])
    plain = served.collate(served.items, rows, None)
    assert plain.labels.tolist() == [1, 0]
    assert plain.counts == {"item": 2}
    forms = {
        tuple(
            served.collate(served.items, rows[:1], torch.tensor([seed])).views["text"]["prompt"][0].tolist()
        )
        for seed in range(method.FORMS)
    }
    assert len(forms) > 2  # three words have six orders
    one = method.data(run_of(tmp_path, "critic", surfaces=False, passes=1), "train")
    assert one is not None
    assert len(one.items) == 1
    assert method.data(run_of(tmp_path, "critic"), "pool") is None


def test_the_critics_loss_by_hand() -> None:
    """A mean in the place of the sum would weigh by the size of a micro-batch."""
    run: Any = SimpleNamespace(stage="critic", out=lambda role: Output(logits=torch.tensor([[0.0], [2.0]])))
    said = method.loss_terms(run, Batch(["a", "b"], {}, torch.tensor([1.0, 0.0])))["critic"]
    assert float(said.total) == pytest.approx(0.693147 + 2.126928, abs=1e-5)
    assert said.per == "item"
    assert method.loss_terms(SimpleNamespace(stage="fit"), Batch([], {})) == {}


def test_tails_are_asked_once_and_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the teacher repeats must not weigh more; a question without a usable tail is left out."""
    asked = ["dog (four legs) is a kind of", "tree (wood leaves) is a kind of"]
    triples.write(
        tmp_path / "questions.json",
        {text: {"head": text[:4].strip(), "relation": "hypernym"} for text in asked},
    )
    answers = {asked[0]: ["animal.", "animal", "pet", "ox"], asked[1]: ["a", "", "b", "."]}
    run = run_of(tmp_path, "tails", tail_samples=4)
    run.inputs["questions"], run.models, run.checkpoint_seconds = tmp_path, {}, 10.0
    run.stopping, run.report, run.leave_out = False, lambda _: None, lambda _: None
    monkeypatch.setattr(method.roles, "build", lambda run: {})
    monkeypatch.setattr(method, "speaker", lambda *_: ScriptedSpeaker(answers, "a script"))
    method.write_tails(run)
    found = triples.read(run.folder / "triples.json", list[Triple])
    assert [(one.question, one.tail) for one in found] == [(asked[0], "animal"), (asked[0], "pet")]
    assert run.facts["triples"] == {"written": 8, "kept": 2}
