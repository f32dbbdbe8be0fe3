"""Symbolic knowledge distillation: cleaning, critic, cut-offs, filter, and its clear errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from kdzoo import execute
from kdzoo.artefacts import Store
from kdzoo.errors import KdzooError
from kdzoo.plan import Request as Bench
from kdzoo.plan import make_plan
from kdzoo.runs import Run, StageSpec
from kdzoo.speakers.speech import Generation, Reply
from kdzoo_llm import critics, triples
from kdzoo_llm.data import relation_speaker, relations
from kdzoo_llm.methods import symbolic_kd
from kdzoo_llm.tasks.word_relations import Nouns
from kdzoo_llm.teachers import chosen_speaker
from kdzoo_llm.triples import Triple, clean_heads, clean_tail, cutoff, mismatched, recall_cutoff
from kdzoo_llm.vocabularies import open_vocabulary


def stage(name: str, *given: str) -> StageSpec:
    plan = make_plan(Bench("symbolic-kd", task="word-relations", arms="symbolic-kd", seeds=1, set=given))
    return next(spec for spec in plan.runs["symbolic-kd", 0] if spec.stage.name == name)


def opened(folder: Path, name: str, *given: str, inputs: dict[str, Path] | None = None) -> Run:
    run = execute.open_run(stage(name, *given), Store(folder / "store"), folder / name)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.inputs = inputs or {}
    return run


def written(folder: Path, rows: list[Triple]) -> Path:
    """A corpus as the stage `tails` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    replies = [
        Reply(f"{t.head}/{t.relation}", (Generation(t.tail, logprobs=None if t.said is None else [t.said]),))
        for t in rows
    ]
    (folder / "answers.jsonl").write_bytes(b"".join(msgspec.json.encode(r) + b"\n" for r in replies))
    return folder


def world(count: int) -> list[Triple]:
    """One true and one wrong triple of each of the first heads of the pool."""
    found = []
    for row in relations.known("pool")[:count]:
        false = relations.plausible_false(row.head, row.relation, symbolic_kd.Draws("test", row.head))
        found += [
            Triple(row.head, row.relation, row.tails[0][0], -1.0),
            Triple(row.head, row.relation, false, -2.0),
        ]
    return found


# --- C1, C2 -------------------------------------------------------------------------------------------------------


def test_heads_are_cleaned_as_the_official_code_does() -> None:
    """By hand: one twice, the least probable fifth gone, one with odd characters gone."""
    chances = {" a b": -1.0, "c d": -2.0, "e #f": -1.5, "g h": -3.0, "i j": -9.0}
    samples = [Generation(text, logprobs=[chance]) for text, chance in [*chances.items(), ("a b", -0.1)]]
    assert clean_heads(samples, 0.2) == ["a b", "c d", "g h"]
    assert clean_heads(samples, 0.0) == ["a b", "c d", "g h", "i j"]
    assert clean_heads([Generation(" ")], 0.0) == []


def test_heads_without_probabilities_are_refused() -> None:
    """The least probable ones would stay in silence."""
    with pytest.raises(KdzooError, match="set dropped = 0"):
        clean_heads([Generation("a b")], 0.2)


def test_tails_are_cleaned() -> None:
    """A stop or a blank would make two triples of one."""
    assert [clean_tail(text) for text in (" dog.", "dog", " to", "", "..")] == ["dog", "dog", "", "", ""]


def test_a_corpus_has_each_triple_once_and_no_empty_tail(tmp_path: Path) -> None:
    """Repetitions would weigh what the teacher likes to say."""
    rows = [Triple("a b", "kind-of", tail, -1.0) for tail in ("cat", " cat.", "", "dog")]
    assert [t.tail for t in triples.corpus_of(written(tmp_path, rows))] == ["cat", "dog"]
    with pytest.raises(KdzooError, match="every tail that the teacher wrote is empty"):
        triples.corpus_of(written(tmp_path / "empty", rows[2:3]))


def test_a_stage_that_was_killed_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in the middle must cost neither answers nor equality."""

    class Tired(type(relation_speaker.speaker())):  # type: ignore[misc]
        asked = 0

        def generate(self, requests: Any, *rest: Any) -> Any:
            Tired.asked += 1
            if Tired.asked == 2:
                raise KeyboardInterrupt
            return super().generate(requests, *rest)

    given = ("head_source=pool", "tails=1")
    whole = opened(tmp_path / "whole", "tails", *given)
    some = relations.heads("pool")[:90]
    monkeypatch.setattr(relations, "heads", lambda split: some)
    symbolic_kd.write_tails(whole)
    cut = opened(tmp_path / "cut", "tails", *given)
    with monkeypatch.context() as patched:
        patched.setattr(symbolic_kd, "chosen_speaker", lambda *_: Tired(relation_speaker.script, "relations"))
        with pytest.raises(KeyboardInterrupt):
            symbolic_kd.write_tails(cut)
    assert not (cut.folder / "answers.jsonl").exists()
    symbolic_kd.write_tails(opened(tmp_path / "cut", "tails", *given))
    assert (cut.folder / "answers.jsonl").read_bytes() == (whole.folder / "answers.jsonl").read_bytes()


def test_heads_of_the_test_are_never_asked(tmp_path: Path) -> None:
    """The teacher may write any head; one of the test would be learnt before it is asked."""
    names = [*relations.heads("test")[:3], relations.heads("pool")[0], "no such"]
    heads = tmp_path / "in"
    heads.mkdir()
    reply = Reply("0", tuple(Generation(name, logprobs=[-1.0]) for name in names))
    (heads / "answers.jsonl").write_bytes(msgspec.json.encode(reply) + b"\n")
    run = opened(tmp_path, "tails", "dropped=0", inputs={"heads": heads})
    symbolic_kd.write_tails(run)
    assert run.facts["heads"] == {"written": 5, "asked": 1}
    reply = Reply("0", (Generation("no such", logprobs=[-1.0]),))
    (heads / "answers.jsonl").write_bytes(msgspec.json.encode(reply) + b"\n")
    with pytest.raises(KdzooError, match="none is known"):
        symbolic_kd.write_tails(opened(tmp_path / "none", "tails", "dropped=0", inputs={"heads": heads}))


def test_a_teacher_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Before anything is asked."""
    with pytest.raises(KdzooError, match="speaker_model"):
        chosen_speaker(opened(tmp_path, "tails", "speaker=local"), relation_speaker.speaker)
    with pytest.raises(KdzooError, match="base_url is not set"):
        chosen_speaker(opened(tmp_path, "tails", "speaker=endpoint"), relation_speaker.speaker)


# --- C3 -----------------------------------------------------------------------------------------------------------


def test_the_critics_loss_by_hand_and_in_half_precision() -> None:
    """Slow reference from the formula; halves must not lose large logits."""
    logits, labels = torch.tensor([2.0, -1.0, 0.0, 90.0]), torch.tensor([1, 1, 0, 1])
    p = logits.double().sigmoid()
    slow = [-(p[i].log() if y else (1 - p[i]).log()) for i, y in enumerate(labels.tolist())]
    found = critics.critic_loss(logits, labels, reduction="none")
    assert torch.allclose(found.double(), torch.stack(slow), atol=1e-6)
    assert critics.critic_loss(logits.bfloat16(), labels, reduction="mean").isfinite()


def test_a_critic_begins_with_the_prior() -> None:
    """Else the first hundred steps learn how many are valid."""
    vocabulary = open_vocabulary("words:relations")
    critic = critics.build(
        "small", vocabulary, length=48, hidden=8, prior=0.77, dropout=0.0, pretrained=False
    )
    last = critic.head[-1]
    assert last.bias.sigmoid().item() == pytest.approx(0.77)


def test_pairs_are_said_in_drawn_ways_and_judged_in_all() -> None:
    """One wording only would be learnt by heart; padding must not count."""
    rows = [Triple("air horn", "kind-of", "alarm", -1.0), Triple("air force", "has-part", "wing", -1.0)]
    vocabulary = open_vocabulary("words:relations")
    pairs = critics.Pairs(["a", "b"], [Nouns().ways(t, 4) for t in rows], [1, 0], vocabulary, 48)
    first = critics.collate(pairs, torch.tensor([0]), torch.tensor([0])).views[critics.PAIR]["ids"]
    second = critics.collate(pairs, torch.tensor([0]), torch.tensor([1 << 7])).views[critics.PAIR]["ids"]
    assert first.tolist() != second.tolist()
    torch.manual_seed(0)
    critic = critics.build("small", vocabulary, length=48, hidden=8, prior=0.5, dropout=0.1, pretrained=False)
    together = critics.scores(critic, pairs, 4)
    alone = [critic(pairs.view([0], [way])).logits.double().sigmoid() for way in range(4)]
    assert together[0].item() == pytest.approx(torch.stack(alone).mean().item(), abs=1e-6)
    with pytest.raises(KdzooError, match="critic_length is 4"):
        replace(pairs, length=4).view([0], [0])


def test_more_passes_than_wordings_are_refused(tmp_path: Path) -> None:
    """Some wordings would count twice."""
    vocabulary = open_vocabulary("words:relations")
    run = opened(tmp_path, "scores", "passes=5", inputs={"tails": written(tmp_path / "in", world(20))})
    run.models["critic"] = critics.build(
        "small", vocabulary, length=48, hidden=8, prior=0.5, dropout=0.0, pretrained=False
    )
    with pytest.raises(KdzooError, match="passes is 5, and a triple of this task can be said in 4 ways"):
        symbolic_kd._said(run, "critic", world(20), 5)


def test_mismatched_tails_are_others_of_the_same_relation() -> None:
    """One that the teacher did write of the head would be a wrong label."""
    rows = [Triple(h, "kind-of", t, None) for h, t in (("a b", "cat"), ("a b", "dog"), ("c d", "cow"))]
    found = mismatched(rows)
    assert [(t.head, t.tail) for t in found[:2]] == [("a b", "cow")] * 2
    assert found[2].tail in ("cat", "dog")
    assert mismatched(rows[:1]) == []


def test_judged_parts_have_no_common_head() -> None:
    """A head in the critic's training and in a cut-off's set makes the cut-off too high."""
    parts = triples.drawn(world(60), 40)
    sizes = [len(parts[part]) for part in ("train", "val", "test")]
    assert sizes == [
        round(0.6 * sum(sizes)),
        round(0.8 * sum(sizes)) - sizes[0],
        sum(sizes) - sizes[0] - sizes[1],
    ]
    assert len({t.head for rows in parts.values() for t in rows}) == sum(sizes)


def test_a_critic_of_one_class_is_refused(tmp_path: Path) -> None:
    """It would call everything valid."""
    folder = written(tmp_path / "in", world(30)[::2])
    run = opened(tmp_path, "critic", "judged=20", inputs={"tails": folder})
    with pytest.raises(KdzooError, match="all valid"):
        symbolic_kd.data(run, "train")


# --- C4, C5 -------------------------------------------------------------------------------------------------------


def test_the_cutoff_by_hand() -> None:
    """Of four valid ones two are to stay: the threshold is the second best of them."""
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), torch.tensor([1, 0, 1, 1, 0, 1])
    assert recall_cutoff(scores, labels, 0.5) == pytest.approx(0.7)
    assert recall_cutoff(scores, labels, 0.8) == pytest.approx(
        0.5
    )  # a wrong one's score may be the threshold
    assert cutoff([(scores, labels), (scores - 0.1, labels)], 0.5) == pytest.approx(0.65)


@pytest.mark.parametrize("recall", [0.1, 0.5, 0.8, 0.95])
def test_the_cutoff_against_a_slow_reference(recall: float) -> None:
    """From the words: the smallest score at which not more than this share of the valid ones is left."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(40, generator=generator, dtype=torch.double)
    labels = (torch.rand(40, generator=generator) < 0.7).long()
    valid = [s for s, y in zip(scores.tolist(), labels.tolist(), strict=True) if y]
    fits = [s for s in scores.tolist() if sum(v >= s for v in valid) / len(valid) <= recall]
    assert recall_cutoff(scores, labels, recall) == min(fits)


def test_cutoffs_that_do_not_exist_are_refused() -> None:
    """No valid item, or equal scores: a number would look like a result."""
    with pytest.raises(KdzooError, match="none of 2 held-out"):
        recall_cutoff(torch.tensor([0.1, 0.2]), torch.tensor([0, 0]), 0.5)
    with pytest.raises(KdzooError, match="100% of the valid triples share the best score"):
        recall_cutoff(torch.tensor([0.5, 0.5]), torch.tensor([1, 1]), 0.5)


def test_the_filter_keeps_what_is_above_the_cutoff(tmp_path: Path) -> None:
    """A likelihood that is higher for true ones must leave more true ones than it found."""
    rows = [
        Triple(t.head, t.relation, t.tail, (0.5 if Nouns().truth(t) else -0.5) + (i % 7) / 10)
        for i, t in enumerate(world(60))
    ]
    folder = written(tmp_path / "in", rows)
    spec = stage("fit", "judged=50", "filter=likelihood")
    run = execute.open_run(spec, Store(tmp_path), tmp_path)
    run.inputs = {"tails": folder}
    kept = symbolic_kd.filtered(run)
    assert 0 < len(kept) < len(rows)
    assert all(map(Nouns().truth, kept))
    found = symbolic_kd.measured(run)
    assert found["corpus/acceptance"] == [1.0, len(kept)]
    assert found["corpus/size"] == [len(kept), len(kept)]
    assert len(symbolic_kd.data(run, "train") or ()) == len(kept)
    assert symbolic_kd.data(run, "val") is None


def test_likelihoods_that_are_missing_are_refused(tmp_path: Path) -> None:
    """All triples would be equal."""
    rows = [Triple(t.head, t.relation, t.tail, None) for t in world(5)]
    run = execute.open_run(stage("fit", "filter=likelihood"), Store(tmp_path), tmp_path)
    run.inputs = {"tails": written(tmp_path / "in", rows)}
    with pytest.raises(KdzooError, match="gave no log-probabilities"):
        symbolic_kd.scores_of(run)


def test_the_plan_has_only_the_stages_that_an_arm_needs() -> None:
    """An arm without the critic would pay for it, and its corpus would be another one."""
    plan = make_plan(Bench("symbolic-kd", task="word-relations", arms="all", seeds=1))
    names = {arm: [spec.stage.name for spec in specs] for (arm, _), specs in plan.runs.items()}
    assert names["symbolic-kd"] == ["heads", "tails", "matching", "critic", "scores", "fit", "evaluate"]
    assert names["symbolic-kd.without-critic"] == ["heads", "tails", "fit", "evaluate"]
    assert "matching" not in names["symbolic-kd.without-pretraining"]
    assert "heads" not in names["symbolic-kd.without-written-heads"]
    fits = {arm: specs[-2].key for (arm, _), specs in plan.runs.items()}
    assert fits["symbolic-kd.speaker"] == fits["symbolic-kd"]
    tails = {
        arm: next(spec.key for spec in specs if spec.stage.name == "tails")
        for (arm, _), specs in plan.runs.items()
        if arm != "student"
    }
    assert tails["symbolic-kd.likelihood"] == tails["symbolic-kd"] == tails["symbolic-kd.low"]
