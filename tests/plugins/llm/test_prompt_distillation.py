"""Prompt distillation: the objective, which questions and answers are trained on, and who reads what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kdzoo import execute as execution
from kdzoo import roles
from kdzoo.errors import KdzooError
from kdzoo.plan import Request as Bench
from kdzoo.plan import make_plan
from kdzoo.runs import Run, StageSpec
from kdzoo.speakers.corpus import Corpus
from kdzoo.speakers.scripted import ScriptedSpeaker
from kdzoo.speakers.speech import Generation, Reply, Request
from kdzoo.testing.subject import Subject, backward, refusal
from kdzoo_llm.data import facts
from kdzoo_llm.data.examples import Example
from kdzoo_llm.language import TEACHER, readings
from kdzoo_llm.local_speaker import LocalSpeaker
from kdzoo_llm.methods import prompt_distillation as pd
from kdzoo_llm.models import build
from kdzoo_llm.sequences import TEXT, data_of
from kdzoo_llm.tasks import page_reading
from kdzoo_llm.vocabularies import open_vocabulary

TASK = "page-reading"
SMALL = ("batch=4",)
CFG = {"vocabulary": "words:facts", "prompt_length": 72, "answer_length": 32}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject("prompt-distillation", TASK, tmp_path_factory.mktemp("subject"), SMALL)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the objective --------------------------------------------------------------------------------------------------


def test_loss_by_hand() -> None:
    """Would catch a sum over tokens in the place of the mean, T on one side only, a missing or a double T^2."""
    teacher = torch.tensor([[[2 * math.log(3.0), 0.0], [1.0, 1.0]], [[0.0, 0.0], [9.0, 0.0]]])
    student, mask = torch.zeros(2, 2, 2), torch.tensor([[True, True], [True, False]])
    kl = math.log(2) - (-0.75 * math.log(0.75) - 0.25 * math.log(0.25))  # of (3/4, 1/4) against (1/2, 1/2)
    plain = pd.distillation_loss(student, teacher, mask, temperature=2.0, square=False)
    torch.testing.assert_close(plain, torch.tensor([kl / 2, 0.0]))
    squared = pd.distillation_loss(student, teacher, mask, temperature=2.0, square=True)
    torch.testing.assert_close(squared, 4 * plain)


def slow(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> list[float]:
    """The formula, token by token and class by class."""
    found = []
    for s, t, real in zip(student.tolist(), teacher.tolist(), mask.tolist(), strict=True):
        total, tokens = 0.0, 0
        for s_token, t_token, counts in zip(s, t, real, strict=True):
            if not counts:
                continue
            z_s = sum(math.exp(value / temperature) for value in s_token)
            z_t = sum(math.exp(value / temperature) for value in t_token)
            for a, b in zip(s_token, t_token, strict=True):
                p = math.exp(b / temperature) / z_t
                total += p * math.log(p / (math.exp(a / temperature) / z_s))
            tokens += 1
        found.append(temperature**2 * total / tokens)
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_loss_is_the_formula(temperature: float) -> None:
    """Would catch KL the other way round."""
    student, teacher = rand(3, 4, 7), 2 * rand(3, 4, 7, seed=1)
    mask = torch.arange(4) < torch.tensor([[4], [1], [2]])
    found = pd.distillation_loss(student, teacher, mask, temperature=temperature, square=True)
    torch.testing.assert_close(found, torch.tensor(slow(student, teacher, mask, temperature)))


def test_loss_at_the_edges() -> None:
    """Would catch gradient that reaches the teacher, padding that counts, NaN behind the mask, or a division by 0."""
    student, teacher = rand(2, 3, 5).requires_grad_(), rand(2, 3, 5, seed=1).requires_grad_()
    mask = torch.tensor([[True, True, False], [False, False, False]])
    loss = partial(pd.distillation_loss, mask=mask, temperature=2.0, square=True)
    loss(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad[0, :2].abs().min() > 0
    assert not student.grad[0, 2].any()
    assert not student.grad[1].any()
    broken = student.detach().clone()
    broken[0, 2], broken[1] = torch.nan, torch.inf
    torch.testing.assert_close(loss(broken, teacher), loss(student, teacher).detach())
    assert loss(student, teacher)[1] == 0
    assert not loss(teacher, teacher).any()
    half = loss(student.bfloat16(), teacher.bfloat16())
    torch.testing.assert_close(half, loss(student, teacher), rtol=0.05, atol=0.01)


def test_longer_padding_changes_nothing() -> None:
    """Would catch a mean over the width of a batch: an answer would weigh less beside a long one."""
    student, teacher, mask = rand(2, 3, 5), rand(2, 3, 5, seed=1), torch.ones(2, 3, dtype=torch.bool)
    more = [torch.cat((value, rand(2, 4, 5, seed=2)), 1) for value in (student, teacher)]
    wide = torch.cat((mask, torch.zeros(2, 4, dtype=torch.bool)), 1)
    short = pd.distillation_loss(student, teacher, mask, temperature=2.0, square=True)
    torch.testing.assert_close(
        pd.distillation_loss(more[0], more[1], wide, temperature=2.0, square=True), short
    )
    torch.testing.assert_close(pd.per_answer(torch.ones(2, 7), wide), torch.ones(2))


# --- who reads what -------------------------------------------------------------------------------------------------


def views() -> tuple[list[Example], dict[str, Any]]:
    rows = [facts.questions(page)[number] for number, page in enumerate(facts.pages("target")[:3])]
    data = data_of(rows, readings(CFG, teacher_prompt=page_reading.teacher_prompt))
    return rows, data.collate(data.items, torch.arange(3), None).views


def test_logits_of_both_sides_lie_on_the_same_tokens() -> None:
    """Would catch logits at p ... p+|y|-1 in place of p-1 ... p+|y|-2, of prompts that are 3 times as long."""
    rows, batch = views()
    vocabulary = open_vocabulary("words:facts")
    model = build("llama-xs", vocabulary, context=128).eval()
    assert batch[TEXT]["answer"].tolist() == batch[TEACHER]["answer"].tolist()
    for view in (TEXT, TEACHER):
        said = model(batch[view]).logits
        for number, row in enumerate(rows):
            text = row.prompt if view == TEXT else facts.with_page(facts.pages("target")[number], row)
            ids = [vocabulary.bos, *vocabulary.encode(f"{text} {row.answer}"), vocabulary.eos]
            whole = model.net(torch.tensor([ids])).logits[0]
            torch.testing.assert_close(said[number], whole[-3:-1], rtol=1e-4, atol=1e-4)


def test_the_student_starts_as_the_teacher_and_only_adapters_move(subject: Subject) -> None:
    """Would catch a teacher that is not the base, adapters that change something at once, or a base that trains."""

    def look(run: Run) -> None:
        student, teacher = run.models["student"], run.models["teacher"]
        assert run.facts["trained_parameters"] == sum(
            value.numel() for name, value in student.named_parameters() if "lora" in name
        )
        assert backward(run, 0) > 0
        batch = run.batch
        assert batch is not None
        torch.testing.assert_close(
            student(batch.views[TEXT]).logits, teacher(batch.views[TEXT]).logits, rtol=0, atol=0
        )
        for name, value in student.named_parameters():
            assert value.requires_grad == ("lora" in name)
        assert all(value.grad is None for value in teacher.parameters())

    subject.look(look)


def test_without_the_document_there_is_nothing_to_learn(subject: Subject) -> None:
    """Would catch a switch that leaves the page in the teacher's prompt: the loss of equal models must be 0."""
    assert subject.look(lambda run: backward(run, 0), "prompt-distillation.without-document") < 1e-6
    assert subject.look(lambda run: backward(run, 0)) > 0.1


def test_hard_targets_are_cross_entropy_with_what_was_drawn(subject: Subject) -> None:
    """Would catch hard targets that weigh tokens instead of answers, as soft ones do not."""

    def look(run: Run) -> tuple[float, float]:
        found = backward(run, 0)
        assert run.batch is not None
        logits, labels = run.out("student").logits, run.batch.labels
        assert logits is not None
        logits = logits.detach()
        rows = []
        for said, ids in zip(logits.log_softmax(2), labels, strict=True):
            tokens = [float(-said[place, one]) for place, one in enumerate(ids.tolist()) if one >= 0]
            rows.append(sum(tokens) / len(tokens))
        return found, sum(rows) / len(rows)

    found, expected = subject.look(look, "prompt-distillation.without-soft-targets")
    assert found == pytest.approx(expected, rel=1e-5)


def test_closed_book_is_the_base(subject: Subject) -> None:
    """Would catch a baseline that is trained a little."""
    run = subject.open("prompt-distillation.closed-book", patch={"steps": 0})
    run.steps = 0
    execution_hash = roles.build(run)["student"]
    run.hook.fit(run=run)
    assert roles.state_hash(run.models["student"]) == execution_hash
    other = subject.built()
    assert execution_hash == roles.state_hash(other.models["teacher"])


# --- questions ------------------------------------------------------------------------------------------------------


def test_which_questions_are_kept() -> None:
    """Would catch a question of the test that is trained on, or one that only makes sense beside its document."""
    read = readings({**CFG, "prompt_length": 40}, teacher_prompt=page_reading.teacher_prompt)
    asked = [
        ("target/0", "where does ba bel live ?"),
        ("target/0", "Where does  ba bel live"),  # the same but for case, blanks and punctuation
        ("target/1", "where does ba bel live ?"),  # another document's
        ("target/0", "what town is in the passage ?"),
        ("target/0", " ?"),
        ("target/0", ""),
        ("target/0", "is this of the test ?"),
        ("target/0", "ba " * 50),
        ("target/0", "ba " * 20),  # fits the student, not the teacher with the page before it
    ]
    kept, left_out = pd.kept_questions(asked, {pd.plain("Is this of the test?")}, read, strict=True)
    assert kept == [
        pd.Question("target/0/q0", "where does ba bel live ?"),
        pd.Question("target/1/q2", "where does ba bel live ?"),
    ]
    assert left_out == {
        "empty": 2,
        "of the test": 1,
        "too long": 2,
        "pointing at the text": 1,
        "asked before": 1,
    }
    loose, _ = pd.kept_questions(asked, {pd.plain("Is this of the test?")}, read, strict=False)
    assert [question.id for question in loose] == ["target/0/q0", "target/0/q1", "target/1/q2", "target/0/q3"]


def test_answers_that_are_trained_on() -> None:
    """Would catch an end token that nobody said, or two answers under one id."""
    replies = [
        Reply(
            "target/0/q1", (Generation("oslo", finish="stop"), Generation("rome rome rome", finish="length"))
        ),
        Reply("target/0/q4", (Generation("", finish="stop"),)),
    ]
    questions = [pd.Question("target/0/q1", "where ?"), pd.Question("target/0/q4", "what ?")]
    assert pd.answered(questions, replies) == [
        Example("target/0/q1/0", "where ?", "oslo"),
        Example("target/0/q4/0", "what ?", ""),
    ]


def planned(subject: Subject, arm: str = "", **options: Any) -> list[StageSpec]:
    """The stages of an arm."""
    runs = subject.plan(arm, **options).runs
    return next(specs for (name, _), specs in runs.items() if name == (arm or subject.method))


def stage(subject: Subject, name: str, arm: str = "", **options: Any) -> Run:
    """A stage of the plan with those before it made, ready to be called."""
    specs = planned(subject, arm, **options)
    found = next(spec for spec in specs if spec.stage.name == name)
    for spec in specs[: specs.index(found)]:
        execution.execute(spec, subject.store)
    return execution.open_run(found, subject.store, subject.folder())


def test_nothing_left_is_one_message(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch training on no rows, or a traceback, where all questions are filtered or all answers are empty."""
    run = stage(subject, "filter")
    every = {question.prompt for page in facts.pages("target") for question in facts.questions(page)}
    monkeypatch.setattr(page_reading, "reserved", lambda run: every)
    with pytest.raises(KdzooError, match="of 200 questions none can be trained on: 0 empty, 200 of the test"):
        pd.keep(run)
    fit = subject.open()
    monkeypatch.setattr(pd, "answered", lambda questions, replies: [Example("target/0/q0/0", "who ?", " ")])
    with pytest.raises(KdzooError, match="there is no text to learn from"):
        pd.data(fit, "train")


def test_what_is_served_is_what_was_answered(subject: Subject) -> None:
    """Would catch the right values in the place of the teacher's, the page in the student's prompt, or a hash that
    does not depend on the content."""
    run = subject.open()
    data = run.data("train")
    corpus = Corpus(run.inputs["answer"])
    assert len(data) == sum(sample.finish == "stop" for reply in corpus for sample in reply.samples)
    for example in data.items.examples:
        question, number = example.id.rsplit("/", 1)
        assert example.answer == corpus[question].texts[int(number)]
        page = page_reading.documents(run)[question.rsplit("/", 1)[0]]
        assert page not in example.prompt
        assert data.items.readings[TEACHER].prompt(example) == f"{page} {example.prompt}"
    other = subject.open(seed=1).data("train")
    assert other.hash != data.hash
    assert run.data("val").hash == subject.open(seed=1).data("val").hash


def test_a_killed_generation_goes_on_to_the_same_bytes(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch answers that depend on where a run was stopped."""
    more = ("answers=2",)
    whole = stage(subject, "answer", set=more)
    pd.answer(whole)
    broken = stage(subject, "answer", set=more)
    broken.checkpoint_seconds = 0.0
    real, calls = LocalSpeaker.generate, []

    def dies(self: LocalSpeaker, requests: Sequence[Request], *rest: Any) -> Iterator[Reply]:
        calls.append(len(requests))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, requests, *rest)

    monkeypatch.setattr(LocalSpeaker, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        pd.answer(broken)
    assert calls == [64, 64]
    again = execution.open_run(broken.spec, subject.store, broken.folder)
    pd.answer(again)
    assert (broken.folder / "answers.jsonl").read_bytes() == (whole.folder / "answers.jsonl").read_bytes()
    assert sum(calls[2:]) == len(Corpus(whole.folder)) - 64


def test_answers_are_drawn_unless_the_temperature_is_0(subject: Subject) -> None:
    """Would catch several greedy answers that are all one, or a temperature that is not handed on."""
    drawn = stage(subject, "answer", set=("answers=3",))
    pd.answer(drawn)
    assert all(len(reply.samples) == 3 for reply in Corpus(drawn.folder))
    best = stage(subject, "answer", "prompt-distillation.without-sampling", set=("answers=3",))
    pd.answer(best)
    texts = [reply.texts for reply in Corpus(best.folder)]
    assert all(len(some) == 1 for some in texts)
    assert texts != [reply.texts[:1] for reply in Corpus(drawn.folder)]


def test_an_endpoint_may_ask(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a hosted model that is not told what to do, or that every seed pays for anew."""
    monkeypatch.setattr(
        pd,
        "EndpointSpeaker",
        lambda endpoint: ScriptedSpeaker(
            lambda asked: f"{endpoint.model} reads {asked.prompt[0].content}", "stands for an endpoint"
        ),
    )
    hosted = ("asker=endpoint", "endpoint.base_url=http://localhost:1/v1", "endpoint.model=big")
    run = stage(subject, "ask", set=hosted)
    pd.ask(run)
    said = Corpus(run.folder)["target/0"].texts[0]
    assert said.startswith("big reads Text: ")
    assert facts.pages("target")[0].text in said
    keys = [[spec.key for spec in planned(subject, set=hosted, seed=seed)] for seed in (0, 1)]
    assert keys[0][:2] == keys[1][:2]
    assert keys[0][2] != keys[1][2]


def test_the_base_here_cannot_ask(subject: Subject) -> None:
    """Would catch a prompt in a made-up chat format that the model never saw."""
    run = stage(subject, "ask", set=("asker=teacher",))
    with pytest.raises(KdzooError, match="has no chat template"):
        pd.ask(run)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("train_on=documents", "there are no questions whose answers"),
        ("asker=endpoint", "endpoint.base_url is empty"),
        ("rank=-1", "at least 0"),
        ("teacher_vocabulary=words:operators", "equal numbers would be different tokens"),
    ],
)
def test_settings_that_cannot_be(given: str, message: str) -> None:
    """Would catch an arm that runs and is not what it is called."""
    said = refusal(lambda: make_plan(Bench("prompt-distillation", task=TASK, seeds=1, set=(given,))))
    assert message in said


def test_a_task_without_documents_is_refused(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an AttributeError on a task that this method has no use for."""
    run = stage(subject, "ask")
    monkeypatch.delattr(page_reading, "documents")
    with pytest.raises(KdzooError, match="lacks documents: there would be nothing to ask about"):
        pd.ask(run)


def test_a_page_that_does_not_fit_is_refused(subject: Subject) -> None:
    """Would catch prompts that are cut: the teacher would answer from half a page."""
    vocabulary = open_vocabulary("words:facts")
    speaker = LocalSpeaker(build("llama-xs", vocabulary, context=16), context=16)
    with pytest.raises(KdzooError, match="context"):
        list(speaker.generate([Request(id="q", prompt=facts.pages("target")[0].text, max_tokens=8)]))


# --- the task -------------------------------------------------------------------------------------------------------


def test_no_question_of_val_or_test_is_trained_on() -> None:
    """Would catch a test that asks what training asked: paraphrases would not be needed to answer it."""
    val, test = (page_reading._questions(split) for split in ("val", "test"))
    trained = {question.prompt for page in facts.pages("target") for question in facts.questions(page)}
    sets = [trained, {question.prompt for question in val}, {question.prompt for question in test}]
    assert [len(one) for one in sets[1:]] == [60, 120]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert {question.prompt for question in (*val, *test)} == page_reading.reserved(None)  # type: ignore[arg-type]
    named = {split: {frozenset(page.entity.split()) for page in facts.pages(split)} for split in facts.SIZES}
    assert not named["target"] & (named["base"] | named["base-val"])
    assert {row.id.split("/")[0] for row in page_reading._examples("train", "base")} == {"base"}


def test_who_reads_a_page() -> None:
    """Would catch a page of somebody else, or a page in front of text that has one already."""
    page = facts.pages("target")[3]
    question = facts.questions(page, "test")[0]
    assert page_reading.teacher_prompt(question) == facts.with_page(page, question)
    row = facts.base("base")[5]
    assert page_reading.teacher_prompt(row) == row.prompt
    assert page_reading.teacher_prompt(Example("target/3/text", "", page.text)) == ""
    seen = page_reading._after_retrieval(2)(question)
    assert page.text in seen
    assert seen.endswith(question.prompt)
    assert len(seen.split()) > len(page.text.split()) + len(question.prompt.split())


def test_the_teacher_is_measured_with_the_page(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an oracle that is not shown the page, and retrieval that does not reach the prompts."""
    asked: list[str] = []
    vocabulary = open_vocabulary("words:facts")

    def note(model: Any, prompts: Sequence[Sequence[int]], *rest: Any) -> Any:
        asked.extend(vocabulary.decode(prompt) for prompt in prompts)
        from kdzoo_llm.decoding import Written

        return Written([[vocabulary.eos] for _ in prompts], None, None)

    monkeypatch.setattr("kdzoo_llm.language.write", note)
    monkeypatch.setattr(page_reading, "write", note)
    page = facts.pages("target")[0].text
    found = {}
    for arm in ("teacher", "prompt-distillation.rag[2]", "prompt-distillation.closed-book"):
        asked.clear()
        run = stage(subject, "evaluate", arm)
        roles.build(run)
        run.split_open.add("test")
        parts = run.hook.evaluate(run=run, split="test")
        metrics = {name: metric for part in parts for name, metric in part.items()}
        assert metrics["accuracy"].value == 0
        assert metrics["reading"].n == 200
        found[arm] = any(page in prompt for prompt in asked[:-200])
    assert found == {
        "teacher": True,
        "prompt-distillation.rag[2]": True,
        "prompt-distillation.closed-book": False,
    }


def test_shipped_base_reads_and_does_not_know(subject: Subject) -> None:
    """Would catch weights of another vocabulary or architecture than the card's: all numbers would be chance."""
    run = subject.built()
    model = run.models["teacher"]
    rows = page_reading._questions("val")
    data = data_of(rows, readings(CFG, teacher_prompt=page_reading.teacher_prompt))
    batch = data.collate(data.items, torch.arange(60), None)
    right = {
        view: (model(batch.views[view]).logits[:, 0].argmax(1) == batch.labels[:, 0]).float().mean()
        for view in (TEXT, TEACHER)
    }
    assert right[TEACHER] > 0.7
    assert right[TEXT] < 0.2
