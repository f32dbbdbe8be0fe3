"""Sequence-level distillation: similarities, the choice of a neighbour, the plan, the loss, pruning, the measures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn

from kdzoo import catalog
from kdzoo.errors import KdzooError
from kdzoo.method import Batch, Output, Stage, Term
from kdzoo.plan import Request as Bench
from kdzoo.plan import make_plan
from kdzoo.runs import Run, Stopped
from kdzoo.settings import Settings
from kdzoo.speakers.corpus import Corpus, speak
from kdzoo.speakers.scripted import Asked, ScriptedSpeaker
from kdzoo.speakers.speech import Generation, Reply, Request
from kdzoo_llm import pruning, translation
from kdzoo_llm.data.examples import Example
from kdzoo_llm.decoding import Way, write
from kdzoo_llm.local_speaker import LocalSpeaker
from kdzoo_llm.methods import seq_kd
from kdzoo_llm.models import LanguageModel, build
from kdzoo_llm.sentence_similarity import sentence_bleu, sentence_gleu
from kdzoo_llm.served import serve_examples
from kdzoo_llm.vocabularies import open_vocabulary

Open = Callable[..., Run]
TASK = "verse-translation"
SMALL = (
    "student=llama-xs",
    "batch=4",
    "labelled=8",
    "unlabelled=4",
    "measured=6",
    "inter_rows=3",
    "inter_beams=4",
)


# --- C4: similarity and choice ------------------------------------------------------------------------------------


def slow_bleu(candidate: list[str], reference: list[str], order: int) -> float:
    """The formula of the card, n-gram by n-gram; what a match has used up is crossed out."""
    if not candidate:
        return 0.0
    product, unmatched = 1.0, 0
    for n in range(1, order + 1):
        left = [tuple(reference[i : i + n]) for i in range(len(reference) - n + 1)]
        grams = [tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1)]
        if not grams:
            continue
        c = 0.0
        for gram in grams:
            if gram in left:
                left.remove(gram)
                c += 1
        if c == 0:
            unmatched += 1
            c = 1 / 2**unmatched
        product *= c / len(grams)
    return product ** (1 / order) * math.exp(1 - max(1, len(reference) / len(candidate)))


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        ("the cat sat on the mat", "the cat sat on the mat"),
        ("the the the the", "the cat"),  # clipped
        ("a b c d e", "v w x y z"),  # no order matches
        ("a b", "a b c d e f"),  # too short for two orders, and for the reference
        ("x", "a"),
        ("a b c d e f", "a"),
    ],
)
def test_sentence_bleu_is_its_formula(candidate: str, reference: str) -> None:
    """Would catch matches that are not clipped, a smoothing that starts at 1, a penalty on long candidates."""
    for order in (1, 2, 4):
        found = sentence_bleu(candidate.split(), reference.split(), order)
        assert found == pytest.approx(slow_bleu(candidate.split(), reference.split(), order))
        assert 0 <= found <= 1


def test_similarities_by_hand() -> None:
    """Would catch another factor of the first order without a match, and GLEU over n-grams with their counts."""
    # Orders: 2/3, 1/2, then 1/2 of one.
    assert sentence_bleu(list("abx"), list("abc")) == pytest.approx((2 / 3 * 1 / 2 * 0.5) ** 0.25)
    assert sentence_bleu([], ["a"]) == 0
    assert sentence_bleu([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1)
    # Different n-grams: {a, aa} of {a, b, aa, ab, aab}.
    assert sentence_gleu(list("aa"), list("aab")) == pytest.approx(2 / 5)
    assert sentence_gleu(list("aab"), list("aab")) == 1
    assert sentence_gleu([], ["a"]) == sentence_gleu(["a"], []) == 0


ROWS = [Example("r0", "uno", "a b c d"), Example("r1", "dos", "e f"), Example("r2", "tres", "g h")]
LISTS = {"uno": ["a b", "a b c x", "a b c x"], "dos": ["z", "", "e f"], "tres": ["", " ", ""]}


def inter_run(folder: Path, monkeypatch: pytest.MonkeyPatch, **cfg: Any) -> Any:
    """A run of the stage `neighbours` behind lists of three hypotheses each."""
    replies = [
        Reply(row.id, tuple(Generation(text) for text in LISTS[row.prompt]))  # in the teacher's order
        for row in ROWS
    ]
    (folder / "lists").mkdir(parents=True)
    (folder / "lists" / "answers.jsonl").write_bytes(b"\n".join(msgspec.json.encode(r) for r in replies))
    monkeypatch.setattr(seq_kd, "rows_of", lambda run, split: ROWS)
    settings = {
        "unfinished": "drop",
        "inter_rows": 0,
        "inter_targets": "neighbour",
        "similarity": "bleu",
        **cfg,
    }
    return SimpleNamespace(
        cfg=Settings(settings), folder=folder, inputs={"candidates": folder / "lists"}, facts={}
    )


def test_the_nearest_hypothesis_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the least alike, the reference itself, an empty hypothesis that wins, a row without any."""
    run = inter_run(tmp_path, monkeypatch)
    seq_kd.neighbours(run)
    found = json.loads((tmp_path / "neighbours.json").read_bytes())
    assert found == {"r0": "a b c x", "r1": "e f"}  # r2 has only empty ones
    assert run.facts["neighbours"]["rows"] == 2
    assert run.facts["neighbours"]["moved"] == 1
    nearer = [slow_bleu(list("abcx"), list("abcd"), 4) - slow_bleu(list("ab"), list("abcd"), 4)]
    nearer += [1 - slow_bleu(["z"], ["e", "f"], 4)]
    assert run.facts["neighbours"]["nearer"] == pytest.approx(sum(nearer) / 2)


@pytest.mark.parametrize(
    ("how", "expected"),
    [("mode", {"r0": "a b", "r1": "z"}), ("reference", {row.id: row.answer for row in ROWS})],
)
def test_the_controls_of_the_fine_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, expected: dict[str, str]
) -> None:
    """Would catch a control that is trained on the neighbours too."""
    run = inter_run(tmp_path, monkeypatch, inter_targets=how)
    seq_kd.neighbours(run)
    assert json.loads((tmp_path / "neighbours.json").read_bytes()) == expected


@pytest.mark.parametrize(("unfinished", "expected"), [("drop", ["a", ""]), ("keep", ["a", "b b b"])])
def test_translations_without_an_end_are_left_out(unfinished: str, expected: list[str]) -> None:
    """Would catch a broken translation that is learnt as if it were whole."""
    run: Any = SimpleNamespace(cfg=Settings({"unfinished": unfinished}))
    reply = Reply("r", (Generation("a", finish="stop"), Generation("b b b", finish="length")))
    assert seq_kd.texts_of(run, reply) == expected


def test_the_first_of_equal_hypotheses_is_chosen() -> None:
    """Would catch the less probable one of two that are equally near."""
    assert seq_kd.most([0.1, 0.5, 0.5]) == 1


def test_only_empty_translations_are_an_error(open_arm: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a training on nothing, which a message must explain."""
    run = open_arm("seq-kd", TASK, set=SMALL)
    silent = [Reply(row.id, (Generation(" "),)) for row in seq_kd.rows_of(run, "train")]
    silent += [Reply(row.id, (Generation(""),)) for row in seq_kd.rows_of(run, "pool")]
    monkeypatch.setattr(seq_kd, "Corpus", lambda folder: silent)
    with pytest.raises(KdzooError, match="12 written answers 12 are empty"):
        seq_kd.data(run, "train")


# --- the plan -----------------------------------------------------------------------------------------------------


def plan_of(*settings: str) -> list[Stage]:
    changed = {text.partition("=")[0] for text in settings}
    small = [text for text in SMALL if text.partition("=")[0] not in changed]
    plan = make_plan(Bench("seq-kd", task=TASK, arms="seq-kd", seeds=1, set=(*small, *settings)))
    return [spec.stage for spec in plan.runs[("seq-kd", 0)]]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ((), ["modes", "fit", "evaluate"]),
        (("targets=reference",), ["fit", "evaluate"]),
        (("inter_steps=2",), ["modes", "fit", "candidates", "neighbours", "fine-tune", "evaluate"]),
        (
            ("prune_to=0.6",),
            ["modes", "fit", "prune-0.2", "prune-0.4", "prune-0.6", "evaluate"],
        ),
        (
            ("starts_from=teacher", "student=llama-m", "inter_steps=2"),
            ["candidates", "neighbours", "fine-tune", "evaluate"],
        ),
    ],
)
def test_stages_follow_the_settings(settings: tuple[str, ...], names: list[str]) -> None:
    """Would catch a stage that is made for nothing, and a teacher that is trained from nothing as the student."""
    stages = plan_of(*settings)
    assert [stage.name for stage in stages] == names
    if "starts_from=teacher" in settings:
        assert [role.source for role in stages[2].roles or ()] == ["task"]


def test_every_arm_shares_what_the_teacher_wrote() -> None:
    """Would catch a setting of the student in the key of the teacher's text: it would be written once an arm."""
    plan = make_plan(Bench("seq-kd", task=TASK, arms="all", seeds=2, set=SMALL))
    assert not plan.pending
    assert {arm.name for arm in plan.arms.values()} >= set(catalog.load().method("seq-kd").arms) - {
        "seq-kd.pruned",
        "seq-kd.pruned-uniform",
        "seq-kd.beam",
    }
    keys: dict[str, set[str]] = {}
    for specs in plan.runs.values():
        for spec in specs:
            keys.setdefault(spec.stage.name, set()).add(spec.key)
    assert len(keys["modes"]) == 2  # with the pool and without
    assert len(keys["candidates"]) == 1
    assert len(keys["neighbours"]) == 3
    assert len(keys["prune-0.4"]) == 4  # two schemes, two seeds


def test_settings_that_contradict_are_refused() -> None:
    """Would catch a round of pruning that falls short, and a fresh net that is fine-tuned as if it were the teacher."""
    with pytest.raises(KdzooError, match=r"prune_to is 0\.5"):
        plan_of("prune_to=0.5")
    with pytest.raises(KdzooError, match="fine-tuned"):
        plan_of("starts_from=teacher")


# --- the teacher's text -------------------------------------------------------------------------------------------


def test_translations_take_the_references_place(open_arm: Open) -> None:
    """Would catch references that are still learnt, and pool sources that are not."""
    run = open_arm("seq-kd", TASK, set=SMALL)
    corpus = Corpus(run.inputs["modes"])
    assert len(corpus) == 12
    rows = run.data("train").items.examples
    assert {row.id.partition("/")[0] for row in rows} <= {"train", "pool"}
    assert rows
    assert all(row.answer == corpus[row.id].texts[0] for row in rows)
    sources = {row.id: row.prompt for split in ("train", "pool") for row in seq_kd.rows_of(run, split)}
    assert all(row.prompt == sources[row.id] for row in rows)
    assert run.data("val").items.examples[0].answer  # what is measured stays the task's


def test_beam_search_finds_the_mode() -> None:
    """Would catch hypotheses that are ranked by their mean, not by their whole log-probability."""
    torch.manual_seed(0)
    model = build("llama-xs", open_vocabulary("file:phrases-2k"), context=20).eval()
    prompts = [[1, 40, 50], [1, 60]]
    way = Way(6, beams=6, best=6, length_penalty=0.0)
    said = write(model, prompts, way, logprobs=True)
    assert said.scores is not None
    assert said.logprobs is not None
    sums = [sum(values) for values in said.logprobs]
    assert said.scores == pytest.approx(sums, abs=1e-3)
    for first in (0, 6):
        assert sums[first : first + 6] == sorted(sums[first : first + 6], reverse=True)


def test_a_killed_search_goes_on(open_arm: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch other bytes, or twice the work, after an interruption in the middle of the teacher's text."""
    run = open_arm("seq-kd", TASK, set=SMALL)
    model = build("llama-xs", open_vocabulary("file:phrases-2k"), context=52)
    speaker, asked = LocalSpeaker(model, context=52), []
    sources = list(seq_kd.rows_of(run, "train"))
    monkeypatch.setattr(seq_kd, "speaker_of", lambda run, batch: speaker)
    monkeypatch.setattr(seq_kd, "AT_ONCE", 2)

    def search(name: str) -> bytes:
        run.folder = tmp_path / name
        seq_kd._search(run, sources, beams=3, best=2)
        return (run.folder / "answers.jsonl").read_bytes()

    expected = search("whole")
    generate = LocalSpeaker.generate

    def broken(self: LocalSpeaker, requests: Any, *rest: Any) -> Any:
        asked.append(len(requests))
        if len(asked) == 3:
            raise Stopped("killed")
        return generate(self, requests, *rest)

    monkeypatch.setattr(LocalSpeaker, "generate", broken)
    with pytest.raises(Stopped):
        search("killed")
    assert search("killed") == expected
    assert sum(asked) == len(sources) + 2  # only the shard in which it was killed is asked again


def test_a_prompt_beyond_the_context_is_refused() -> None:
    """Would catch a source that is cut before it is translated."""
    model = build("llama-xs", open_vocabulary("file:phrases-2k"), context=20)
    request = Request(id="r", prompt="el señor es mi pastor", temperature=0, beams=5, max_tokens=19)
    with pytest.raises(KdzooError, match="context holds 20"):
        LocalSpeaker(model, context=20).check([request])


def test_a_dead_endpoint_is_named(open_arm: Open) -> None:
    """Beams are no part of what an endpoint can do: refused before anything is sent."""
    run = open_arm("seq-kd", TASK, set=SMALL)
    values = dict(run.cfg) | {"endpoint.base_url": "http://127.0.0.1:9/v1", "endpoint.model": "none"}
    run.cfg = Settings(values)
    with pytest.raises(KdzooError, match="beam"):
        seq_kd._search(run, ROWS, beams=5, best=1)


def test_scripted_answers_are_served(tmp_path: Path, open_arm: Open) -> None:
    """Any speaker can be the teacher: too long and empty answers are left out, equal sources are kept apart."""
    run = open_arm("seq-kd", TASK, set=(*SMALL, "pool_sources=false"))
    rows = seq_kd.rows_of(run, "train")
    texts = ["", "the lord " * 40, "so it was", "so it was"]

    def script(asked: Asked) -> str:
        return texts[min(int(asked.request.id[1:]), 3)]

    requests = [Request(id=f"r{k}", prompt=row.prompt, temperature=0) for k, row in enumerate(rows)]
    run.folder = tmp_path / "scripted"
    speak(run, ScriptedSpeaker(script, "translator"), requests)
    corpus = Corpus(run.folder)
    written = [row._replace(answer=corpus[f"r{k}"].texts[0]) for k, row in enumerate(rows)]
    served = serve_examples(run, written)
    assert list(served.ids) == [row.id for row in rows[2:]]


# --- the loss -----------------------------------------------------------------------------------------------------

B, A, V = 2, 3, 5


def loss_of(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, normalise: str
) -> dict[str, Term]:
    """All terms of a batch: the task's likelihood, through the wrapper."""
    cfg = Settings({"word_weight": alpha, "normalise": normalise})
    run: Any = SimpleNamespace(
        cfg=cfg,
        out=lambda role: Output(logits=student),
        signal=lambda role, view: Output(logits=teacher),
        batch=Batch(["a", "b"], {"text": {}}),
    )
    batch = Batch(["a", "b"], {"text": {}}, labels)
    flat = nn.functional.cross_entropy(
        student.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum"
    )
    wrapper = seq_kd.loss_terms(run, batch)
    next(wrapper)
    try:
        wrapper.send([{"task": Term(flat, per="token")}])
    except StopIteration as done:
        return {name: term for part in done.value for name, term in part.items()}
    raise AssertionError


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_loss_is_its_formula(alpha: float) -> None:
    """Would catch a temperature, padding that counts, weights that do not add up to one."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(B, A, V, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([[1, 2, -1], [4, -1, -1]])
    terms = loss_of(student, teacher, labels, alpha, "token")
    nll = wkd = 0.0
    for b, a in ((0, 0), (0, 1), (1, 0)):
        p = student[b, a].exp() / student[b, a].exp().sum()
        q = teacher[b, a].exp() / teacher[b, a].exp().sum()
        nll -= math.log(float(p[labels[b, a]]))
        wkd -= sum(float(q[k]) * math.log(float(p[k])) for k in range(V))
    total = sum(float(term.total) * term.weight for term in terms.values())
    assert total == pytest.approx((1 - alpha) * nll + alpha * wkd)
    assert ("word" in terms) == (alpha > 0)


def test_losses_are_divided_alike() -> None:
    """Would catch one term a token and the other a sentence: alpha would depend on the length."""
    x, labels = torch.randn(B, A, V), torch.zeros(B, A, dtype=torch.long)
    assert {term.per for term in loss_of(x, x, labels, 0.5, "token").values()} == {"token"}
    assert {term.per for term in loss_of(x, x, labels, 0.5, "sentence").values()} == {"item"}


def test_the_teacher_gets_no_gradient_and_equality_pulls_nowhere() -> None:
    """Would catch a teacher that is moved towards its student."""
    teacher = torch.randn(B, A, V, dtype=torch.float64, requires_grad=True)
    student = teacher.detach().clone().requires_grad_()
    terms = loss_of(student, teacher, torch.zeros(B, A, dtype=torch.long), 1.0, "token")
    terms["word"].total.backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_low_precision_is_summed_in_float32() -> None:
    """Would catch a sum over a vocabulary in bfloat16."""
    x, y = torch.randn(B, A, V), torch.randn(B, A, V)
    labels = torch.zeros(B, A, dtype=torch.long)
    exact = float(loss_of(x, y, labels, 1.0, "token")["word"].total)
    low = loss_of(x.bfloat16(), y.bfloat16(), labels, 1.0, "token")["word"].total
    assert low.dtype == torch.float32
    assert float(low) == pytest.approx(exact, rel=0.02)


# --- C7 -----------------------------------------------------------------------------------------------------------


def test_pruned_to_the_end_and_measured(open_arm: Open) -> None:
    """Would catch a last stage that prunes less than its name says, or that training undoes it."""
    run = open_arm("seq-kd", TASK, arm="seq-kd.pruned[0.4]", set=(*SMALL, "prune_steps=2", "eval.beams=2"))
    assert run.stage == "prune-0.4"
    student = run.models["student"]
    assert isinstance(student, LanguageModel)
    assert run.cfg.prune_to == 0.4
    wrapper = seq_kd.fit(run)
    next(wrapper)
    assert pruning.density(student) == pytest.approx(0.6, abs=0.01)
    assert run.facts["density"] == pruning.density(student)
    wrapper.close()


# --- what is measured ---------------------------------------------------------------------------------------------


def test_bleu_is_sacrebleus_on_the_words_as_they_are() -> None:
    """Would catch percents, and marks that are split again."""
    assert translation.bleu(["a b c d e"], ["a b c d e"]) == pytest.approx(1)
    assert translation.bleu(["don’t , a b c"], ["don’t , a b x"]) == pytest.approx(
        (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )
    assert translation.bleu([""], ["a b"]) == 0


def test_the_modes_probability_is_the_models_own(open_arm: Open) -> None:
    """Would catch log-probabilities, a mean over tokens, rows in the order of their lengths, a missing end token."""
    run = open_arm("seq-kd", TASK, set=SMALL)
    found = translation.modes(run, "student", "val", beams=2)
    student = run.models["student"]
    assert isinstance(student, LanguageModel)
    rows = run.data("val").items.encoded("text")
    for row, text, probability in zip(rows, found.texts, found.probabilities, strict=True):
        way = Way(int(run.cfg.answer_length), beams=2, length_penalty=0.0)
        alone = write(student, [row.prompt], way, logprobs=True)
        assert alone.logprobs is not None
        assert student.vocabulary.decode(alone.ids[0]) == text
        assert probability == pytest.approx(math.exp(sum(alone.logprobs[0])), rel=1e-3)
