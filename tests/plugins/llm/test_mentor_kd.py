"""Mentor-KD: the loss, the filter, the stages that ask, the training set; and the task it runs on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdzoo import catalog, execute
from kdzoo.artefacts import Store
from kdzoo.errors import KdzooError
from kdzoo.fit import StepModule
from kdzoo.plan import Request as Bench
from kdzoo.plan import make_plan
from kdzoo.runs import Run
from kdzoo.speakers.corpus import Corpus, speak
from kdzoo.speakers.scripted import ScriptedSpeaker
from kdzoo.speakers.speech import Generation, Reply, Request
from kdzoo_llm.data import reasoning
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.extraction import extract, is_same
from kdzoo_llm.local_speaker import LocalSpeaker
from kdzoo_llm.methods import mentor_kd
from kdzoo_llm.methods.mentor_kd import choose, explain, soft_label_loss, written
from kdzoo_llm.tasks import gsm8k_reasoning, shuffled_reasoning

Open = Callable[..., Run]
TASK = "shuffled-reasoning"
# One rationale of the mentor for a few questions only, and nets that cost nothing.
SMALL = ("student=llama-xs", "teacher=llama-s", "batch=8", "explained=40", "mentor_rationales=1")


@pytest.fixture
def few_questions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """48 questions of each split instead of 900 and less."""
    whole = shuffled_reasoning.examples
    shuffled_reasoning._split.cache_clear()
    monkeypatch.setattr(shuffled_reasoning, "examples", lambda split, kinds: whole(split, kinds)[:48])
    yield
    shuffled_reasoning._split.cache_clear()


# --- the loss -----------------------------------------------------------------------------------------------------


def test_soft_labels_by_hand() -> None:
    """Would catch a hidden T^2, the other direction of the divergence, and a mean over classes."""
    student = torch.tensor([[[0.0, 0.0]]])
    mentor = torch.tensor([[[2 * math.log(3.0), 0.0]]])  # at T = 2: 3/4, 1/4
    found = soft_label_loss(student, mentor, form="kl", temperature=2.0, reduction="mean")
    assert found.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    mse = soft_label_loss(student, mentor, form="mse", temperature=2.0, reduction="mean")
    assert mse.item() == pytest.approx((2 * math.log(3.0)) ** 2 / 2)
    ce = soft_label_loss(student, mentor, form="ce", temperature=2.0, reduction="mean")
    assert ce.item() == pytest.approx(math.log(2.0))


def slow(student: Tensor, mentor: Tensor, temperature: float, rows: list[tuple[int, int]]) -> float:
    """The formula in plain loops: mean over the given positions of KL(mentor || student)."""
    total = 0.0
    for b, a in rows:
        p = [math.exp(z / temperature) for z in mentor[b, a].tolist()]
        q = [math.exp(z / temperature) for z in student[b, a].tolist()]
        for x, y in zip(p, q, strict=True):
            total += x / sum(p) * (math.log(x / sum(p)) - math.log(y / sum(q)))
    return total / len(rows)


@pytest.mark.parametrize("mask", ["answer", "official"])
def test_the_total_is_the_papers(open_arm: Open, few_questions: None, mask: str) -> None:
    """Would catch a wrong weight of either term, and padding that counts where it must not, or the reverse."""
    run = open_arm("mentor-kd", TASK, set=(*SMALL, f"mask={mask}", "soft_weight=0.4", "teacher_filter=false"))
    batch = next(iter(run.loader()))
    loss = float(StepModule(run)(batch).detach())
    student, mentor = run.out("student").logits, run.signal("teacher").logits
    assert student is not None
    assert mentor is not None
    valid = [tuple(place) for place in (batch.labels >= 0).nonzero().tolist()]
    everywhere = [(b, a) for b in range(student.shape[0]) for a in range(student.shape[1])]
    assert len(valid) < len(everywhere)  # some rows are padded
    hard = sum(
        math.log(sum(math.exp(z) for z in student[b, a].tolist())) - student[b, a, batch.labels[b, a]].item()
        for b, a in valid
    )
    soft = slow(student, mentor, 2.0, everywhere if mask == "official" else valid)
    assert loss == pytest.approx(0.6 * hard / len(valid) + 0.4 * soft, rel=1e-4)


def test_the_form_ce_is_alone(open_arm: Open, few_questions: None) -> None:
    """Would catch cross-entropy on tokens that is still there: the official mode has soft labels only."""
    run = open_arm("mentor-kd", TASK, arm="mentor-kd.loss[ce]", set=SMALL)
    batch = next(iter(run.loader()))
    loss = float(StepModule(run)(batch).detach())
    student, mentor = run.out("student").logits, run.signal("teacher").logits
    assert student is not None
    assert mentor is not None
    mask = batch.labels >= 0
    expected = -(mentor.softmax(2) * student.log_softmax(2)).sum(2)[mask].mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("form", ["kl", "mse", "ce"])
def test_identity_gradient_and_low_precision(form: str) -> None:
    """Would catch a gradient into the mentor, a pull at equality, and half precision that is summed as it is."""
    torch.manual_seed(0)
    mentor = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    same = mentor.detach().clone().requires_grad_()
    soft_label_loss(same, mentor, form=form, temperature=1.0, reduction="mean").backward()
    assert mentor.grad is None
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-12
    student = torch.randn(2, 3, 7, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    exact = soft_label_loss(student, mentor, form=form, temperature=2.0, reduction="mean", mask=mask)
    half = soft_label_loss(
        student.bfloat16(), mentor.bfloat16(), form=form, temperature=2.0, reduction="mean", mask=mask
    )
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.02)
    # What stands in the padding plays no part.
    other = torch.where(mask.unsqueeze(2), student, 100.0)
    again = soft_label_loss(other, mentor, form=form, temperature=2.0, reduction="mean", mask=mask)
    assert again.item() == pytest.approx(exact.item())


def test_other_vocabularies_and_forms_are_refused() -> None:
    """Would catch broadcasting of one vocabulary against another, and a misspelt form that trains on nothing."""
    for form in ("kl", "mse", "ce"):
        with pytest.raises(ValueError, match="shape"):
            soft_label_loss(
                torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), form=form, temperature=1.0, reduction="mean"
            )
    with pytest.raises(ValueError, match="'kl', 'mse' or 'ce'"):
        soft_label_loss(
            torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), form="js", temperature=1.0, reduction="mean"
        )


# --- the filter and the text --------------------------------------------------------------------------------------

QUESTIONS = [Example("a", "1 plus 1", "0 2"), Example("b", "2 plus 1", "0 3")]
TEXTS = {
    "a": ["1 plus 1 is 0 2 --> 0 2", "1 plus 1 is 0 3 --> 0 3", " --> 0 2", ""],
    "b": ["2 plus 1 is 0 3 --> 3 --> 9", "2 plus 1 is 0 3"],
}


def chosen(is_correct: mentor_kd.IsCorrect | None, longest: int = 99) -> mentor_kd.Kept:
    return choose(
        QUESTIONS,
        TEXTS,
        mark="m",
        is_correct=is_correct,
        length=lambda text: len(text.split()) + 1,
        longest=longest,
    )


def test_the_filter_keeps_right_answers_and_attaches_the_gold_one() -> None:
    """Would catch wrong rationales in the training set, and the mentor's own answer behind a kept one."""
    kept = chosen(lambda row, text: "0 2" in text or row.id == "b")
    assert kept.rows == [
        Example("a#m0", "1 plus 1", "1 plus 1 is 0 2 --> 0 2"),
        Example("b#m0", "2 plus 1", "2 plus 1 is 0 3 --> 0 3"),
        Example("b#m1", "2 plus 1", "2 plus 1 is 0 3 --> 0 3"),
    ]
    assert kept.counts == {"written": 6, "wrong": 1, "empty": 2, "too_long": 0, "kept": 3}


def test_without_the_filter_wrong_ones_stay_but_empty_and_long_ones_do_not() -> None:
    """Would catch empty generations as training rows, and rows that the model's context would refuse."""
    kept = chosen(None)
    assert [row.id for row in kept.rows] == ["a#m0", "a#m1", "b#m0", "b#m1"]
    assert kept.rows[1].answer == "1 plus 1 is 0 3 --> 0 2"  # the wrong steps, the right answer (card C4)
    assert chosen(None, longest=9).counts["too_long"] == 4


@pytest.mark.parametrize(
    ("text", "kind", "answer"),
    [
        ("Because it is C", "letters-e", "C"),
        ("--> Because of C", "letters-e", "B"),  # the official quirk: letters inside words
        ("A or C --> (F)", "letters-f", "F"),
        ("Yes. --> No, it is not", "yes-no", "no"),
        ("nothing said", "yes-no", "nothing said"),
        ("--> lttr ", "whole", "lttr"),
        ("costs $1,234.50 --> $1,234.50", "number", "1234.50"),
        ("", "number", ""),
    ],
)
def test_answers_are_extracted_by_kind(text: str, kind: str, answer: str) -> None:
    """Would catch a regular expression of one data set that is used for another."""
    assert extract(text, kind) == answer


def test_decimals_are_values_and_unknown_kinds_are_named() -> None:
    """Would catch 4.0 counted wrong where 4 is right."""
    assert is_same("--> 4.0", "4", "decimal")
    assert not is_same("--> 4.0", "4", "number")
    assert not is_same("--> none", "4", "decimal")
    with pytest.raises(KdzooError, match="letters-e"):
        extract("A", "letters-d")


# --- the task -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kinds", "right"), [("swaps", 0.5), ("both", 0.75)])
def test_the_task_judges_what_is_written(kinds: str, right: float) -> None:
    """Would catch an accuracy of tokens, and texts that are held against the questions of another kind."""
    rows = [row for row in reasoning.load("val") if kinds in ("both", row.id.split("/")[1])]
    texts = [reasoning.target(reasoning.rationale(row), row.answer) for row in rows]
    skipped = 2 if kinds == "swaps" else 4
    run = SimpleNamespace(cfg=SimpleNamespace(kinds=kinds))
    said = [text if i % skipped else "" for i, text in enumerate(texts)]
    found = shuffled_reasoning.judge(run, said, "val")  # type: ignore[arg-type]
    assert found["accuracy"].value == pytest.approx(right)
    assert found["accuracy"].n == len(rows)


def test_every_right_row_fits_the_settings() -> None:
    """Would catch lengths in the card that cut or refuse the task's own rows."""
    params = catalog.load().task(TASK).params
    longest = max(len(row.answer.split()) + 1 for row in shuffled_reasoning.examples("val", "both"))
    assert longest <= int(str(params["answer_length"].default))
    for split in ("train", "val", "test"):
        rows = shuffled_reasoning.examples(split, "both")
        assert max(len(row.prompt.split()) + 1 for row in rows) <= int(str(params["prompt_length"].default))


def test_a_solution_of_gsm8k_becomes_rationale_and_number() -> None:
    """Would catch notes for a calculator that are learnt as text, and numbers with commas that are never right."""
    row = Example("1", "q", "He has 2*500=<<2*500=1000>>1000 .\nSo 1,000 .\n#### 1,000")
    found = gsm8k_reasoning.solved(row)
    assert found.answer == "He has 2*500=1000 . So 1,000 . --> 1000"
    asked = row._replace(answer="1000")
    assert gsm8k_reasoning.is_correct(asked, found.answer)
    assert not gsm8k_reasoning.is_correct(asked, "it is 100")


# --- stages -------------------------------------------------------------------------------------------------------


def stage_run(tmp_path: Path, name: str, *settings: str, arm: str = "mentor-kd") -> Run:
    """The run of one stage, in its final folder's place; stages before it are made."""
    plan = make_plan(Bench("mentor-kd", task=TASK, arms=arm, seeds=1, set=(*SMALL, *settings), smoke=True))
    store = Store(tmp_path)
    for spec in plan.runs[(arm, 0)]:
        if spec.stage.name == name:
            return execute.open_run(spec, store, tmp_path / name)
        execute.execute(spec, store)
    raise AssertionError(name)


def test_the_teacher_explains_the_first_questions(tmp_path: Path) -> None:
    """Would catch a share that is not respected: all claims about few rationales hang on it."""
    run = stage_run(tmp_path, "explain", "teacher_rationales=2")
    explain(run)
    said = written(run.folder)
    assert list(said) == [row.id for row in shuffled_reasoning.examples("train")[:40]]
    assert {len(texts) for texts in said.values()} == {2}
    assert all(reasoning.ARROW in text for texts in said.values() for text in texts)


class Interrupted(Exception):
    """Stands for a kill in the middle."""


def test_the_mentor_goes_on_where_it_was_killed(
    tmp_path: Path, few_questions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a resumed corpus that differs from an uninterrupted one in any byte."""
    monkeypatch.setenv("KDZOO_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(mentor_kd, "speak", partial(speak, shard=16))
    run = stage_run(tmp_path, "augment")
    mentor_kd.augment(run)
    whole = (run.folder / "answers.jsonl").read_bytes()

    other = stage_run(tmp_path, "augment")
    other.folder = tmp_path / "again"
    made, calls = LocalSpeaker.generate, []

    def dies(self: LocalSpeaker, requests: Any, *rest: Any) -> Any:
        calls.append(len(requests))
        if len(calls) == 2:
            raise Interrupted
        return made(self, requests, *rest)

    monkeypatch.setattr(LocalSpeaker, "generate", dies)
    with pytest.raises(Interrupted):
        mentor_kd.augment(other)
    assert not (other.folder / "answers.jsonl").exists()
    mentor_kd.augment(other)
    assert (other.folder / "answers.jsonl").read_bytes() == whole
    assert sum(calls) == 48 + 16  # one shard was asked for again


def test_an_endpoint_is_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the first answer taken for the second, and empty rationales that are paid for again."""

    def answers(asked: Any) -> str:
        if "Therefore" in asked.prompt:
            return "The answer is ball ."
        return "" if "claire have" in asked.prompt else "thought"

    monkeypatch.setattr(
        mentor_kd, "EndpointSpeaker", lambda endpoint: ScriptedSpeaker(answers, endpoint.model)
    )
    run = stage_run(tmp_path, "explain", "endpoint.base_url=http://localhost:1/v1", "endpoint.model=big")
    explain(run)
    said = written(run.folder)
    assert {text for texts in said.values() for text in texts} == {"thought --> The answer is ball .", ""}
    assert len(Corpus(run.folder)) == sum(1 for texts in said.values() if texts[0])


def test_a_dead_endpoint_ends_with_one_message(tmp_path: Path) -> None:
    """Would catch a traceback of the HTTP library, or a run that goes on without a teacher."""
    pytest.importorskip("httpx")
    run = stage_run(tmp_path, "explain", "endpoint.base_url=http://127.0.0.1:9/v1", "endpoint.model=big")
    with pytest.raises(KdzooError, match=r"127\.0\.0\.1:9.*cannot be reached"):
        explain(run)


def test_nothing_left_is_an_error_with_the_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch training on an empty set, or on the task's bare answers instead."""
    monkeypatch.setattr(
        shuffled_reasoning, "speaker", lambda run: ScriptedSpeaker(lambda asked: "", "silent")
    )
    run = stage_run(tmp_path, "fit", arm="mentor-kd.ft-cot")
    with pytest.raises(KdzooError, match=r"no rationale is left.*'empty': 40"):
        run.data("train")


def test_both_writers_are_in_the_training_set(tmp_path: Path, few_questions: None) -> None:
    """Would catch a mentor whose rationales are made and never used, and ids that are given twice."""
    run = stage_run(tmp_path, "fit", "mentor_filter=false", "answer_length=60")
    data = run.data("train")
    counts = run.facts["rationales"]
    assert len(set(data.ids)) == len(data) == counts["teacher"]["kept"] + counts["mentor"]["kept"]
    assert counts["teacher"]["kept"] == 40 - counts["teacher"]["wrong"]
    assert counts["mentor"]["written"] == 48
    assert run.data("val").ids[0].startswith("val/")


def test_the_baseline_needs_no_mentor_and_all_arms_share_one() -> None:
    """Would catch mentors that are trained again for each arm, and a baseline that waits for one."""
    arms = "mentor-kd,mentor-kd.ft-cot,mentor-kd.lambda*,mentor-kd.number*,mentor-kd.mentor"
    plan = make_plan(Bench("mentor-kd", task=TASK, arms=arms, seeds=2))
    stages: dict[str, set[str]] = {}
    for spec in plan.specs.values():
        stages.setdefault(spec.stage.name, set()).add(spec.key)
    assert len(stages["mentor"]) == len(stages["explain"]) == 1
    assert len(stages["augment"]) == 4  # 1, 3, 6 and 10 rationales
    assert [spec.stage.name for spec in plan.runs[("mentor-kd.ft-cot", 0)]] == ["explain", "fit", "evaluate"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rationale_prompt=Think step by step.", r"rationale_prompt.*without \{question\}"),
        ("answer_prompt={question} Therefore", r"answer_prompt.*without \{rationale\}"),
        ("teacher_vocabulary=words:shuffles", "token k of one must be token k of the other"),
        ("soft_loss=hidden", "expected one of 'kl', 'mse', 'ce'"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(setting: str, message: str) -> None:
    """Would catch mistakes that are found when the teacher has been paid."""
    with pytest.raises(KdzooError, match=message):
        make_plan(Bench("mentor-kd", task=TASK, set=(setting,)))


def test_a_question_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    """Would catch prompts that are cut in silence before the mentor reads them."""
    from kdzoo_llm.models import build
    from kdzoo_llm.vocabularies import open_vocabulary

    speaker = LocalSpeaker(build("llama-xs", open_vocabulary("words:reasoning"), context=20), context=20)
    row = shuffled_reasoning.examples("train")[0]
    with pytest.raises(KdzooError, match="context holds 20"):
        list(speaker.generate([Request(id=row.id, prompt=row.prompt, max_tokens=10)]))


def test_a_reply_without_samples_is_no_row() -> None:
    """Would catch an index error where a server's filter has taken everything."""
    reply = Reply("a", (Generation(""),))
    kept = choose(QUESTIONS, {reply.id: reply.texts}, mark="t", is_correct=None, length=len, longest=99)
    assert kept.rows == []
    assert kept.counts["empty"] == 1
