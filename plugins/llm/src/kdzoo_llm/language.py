"""What all language tasks share: models by name, cross-entropy of tokens, perplexity and the answers that are written.

A task's module imports these hooks and adds

    data(run, split) -> Data                      by `served`, which writes the views
    examples(run, split) -> list[Example]         what the split holds, in its order
    judge(run, examples, answers) -> Scores       what the written answers are worth; no `judge`: nothing is written
    teacher_prompt(example) -> str                only where the teacher reads more than the student: its view is then
                                                  "teacher_text", which the task's card says, too

Shapes: B rows, T tokens of answer, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdzoo import catalog
from kdzoo.cards import Side, TaskCard
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Metric, Output, Term
from kdzoo.runs import as_output
from kdzoo.task import Data
from kdzoo_llm import models, vocabularies
from kdzoo_llm.examples import Example
from kdzoo_llm.sequences import IGNORE, Reading, serve
from kdzoo_llm.writing import write

if TYPE_CHECKING:
    from kdzoo.runs import Run

Scores = Mapping[str, "Tensor | float"]
"""Metric -> values of single answers, (N,), or one number of all of them."""


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """Student and teacher by the names in the settings, each with its vocabulary."""
    if role not in ("student", "teacher"):
        return None
    return models.build(str(run.cfg[role]), vocabulary(run.cfg, role))


def vocabulary(cfg: Mapping[str, Any], role: str = "student") -> Any:
    """The tokenizer of a role: the setting `vocabulary`, for the teacher `teacher_vocabulary` where that is set."""
    return vocabularies.load(vocabulary_name(cfg, role))


def vocabulary_name(cfg: Mapping[str, Any], role: str) -> str:
    return str((cfg.get("teacher_vocabulary", "") if role == "teacher" else "") or cfg["vocabulary"])


def view_of(task: TaskCard, cfg: Mapping[str, Any], role: str) -> str:
    """The view a role reads: a teacher that has another vocabulary, or reads more, has a view of its own."""
    if role == "teacher" and vocabulary_name(cfg, role) != cfg["vocabulary"]:
        return "teacher_text"
    return task.gives[role].view if role in task.gives else "text"


def taught(run: Run) -> tuple[Tensor, Tensor]:
    """Logits of student and teacher at the positions of the answer, (B, T, V) each.

    Where the teacher reads another prompt than the student, the answers are the same tokens.
    """
    student, teacher = run.out("student"), run.signal("teacher", view_of(run.task, run.cfg, "teacher"))
    assert student.logits is not None
    assert teacher.logits is not None
    return student.logits, teacher.logits


def check_pair(task: TaskCard, cfg: Mapping[str, Any]) -> dict[str, Side]:
    """Vocabularies and layers of both nets, before any weights are loaded."""
    found = {}
    for role in ("student", "teacher"):
        tokenizer = vocabulary(cfg, role)
        name = vocabularies.vocabulary_hash(tokenizer)
        found[role] = models.side(str(cfg[role]), tokenizer, name, view_of(task, cfg, role))
    return found


def served(run: Run, examples: list[Example], labelled: bool = True) -> Data:
    """Examples as the task serves them: the view "text", and "teacher_text" where the teacher reads otherwise."""
    cfg, context = run.cfg, int(run.cfg["context"])
    readings = {"text": Reading(vocabulary(cfg), context)}
    if view_of(catalog.load().task(run.spec.task), cfg, "teacher") != "text":
        readings["teacher_text"] = Reading(vocabulary(cfg, "teacher"), context, _prompt_of(run, "teacher"))
    return serve(examples, readings, labelled)


def training_examples(run: Run) -> list[Example]:
    """The task's training examples, as they are before a method changes their answers."""
    found: list[Example] = catalog.load().module(run.task.slug).examples(run, "train")
    return found


def _prompt_of(run: Run, role: str) -> Callable[[Example], str]:
    """What a role reads of an example."""
    own = getattr(catalog.load().module(run.spec.task), "teacher_prompt", None)
    return own if own and role == "teacher" else lambda example: example.prompt


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Cross-entropy summed over the tokens of the answers, their end included (nats)."""
    return {"task": Term(cross_entropy(run.out("student"), batch.labels), per="token")}


def cross_entropy(output: Output, labels: Tensor) -> Tensor:
    """The sum over labelled tokens of -log p(token)."""
    assert output.logits is not None
    logits = output.logits.float()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")


def batches(run: Run, split: str, size: int = 0) -> Iterator[Batch]:
    """A split in its order, without augmentation, on the run's device."""
    data, size = run.data(split), size or int(run.cfg["eval_batch"])
    for first in range(0, len(data), size):
        rows = torch.arange(first, min(first + size, len(data)))
        yield run.to_device(data.collate(data.items, rows, None))


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """Perplexity and share of right tokens, given the right answer so far; then what `judge` says of written answers.

    Answers are written greedily, on the first `eval_answers` examples of the split; in the last stage also by a beam
    search of width `eval.beams`, whose metrics are called ``name[beam]``, where that is more than 1.
    """
    found: dict[str, Metric] = {}
    module = catalog.load().module(run.task.slug)
    for role, suffix in run.shipped():
        for name, metric in _read(run, role, split).items():
            found[f"{name}{suffix}"] = metric
        if judge := getattr(module, "judge", None):
            for name, metric in _written(run, role, split, judge, module.examples).items():
                found[f"{name}{suffix}"] = metric
    return found


def _read(run: Run, role: str, split: str) -> dict[str, Metric]:
    """What needs the right answer only: one pass over the split."""
    model, teacher = run.models[role], run.models.get("teacher") if run.stage == "evaluate" else None
    nll, right, tokens, apart, agree = [], [], [], [], []
    for batch in batches(run, split):
        said = _logits(run, model, batch, view_of(run.task, run.cfg, role))
        keep = batch.labels != IGNORE
        chosen = F.cross_entropy(said.transpose(1, 2), batch.labels, ignore_index=IGNORE, reduction="none")
        best = said.argmax(-1)
        nll.append(chosen.sum(1))
        right.append(((best == batch.labels) & keep).sum(1))
        tokens.append(keep.sum(1))
        if teacher is None or teacher is model:
            continue
        told = _logits(run, teacher, batch, view_of(run.task, run.cfg, "teacher"))
        if told.shape == said.shape:
            apart.append(kl_divergence(said, told, temperature=1.0, axis=-1, reduction="none")[keep])
            agree.append((best == told.argmax(-1))[keep])
    count = torch.cat(tokens).clamp(min=1).double()
    each = torch.cat(nll).double() / count
    mean = float(torch.cat(nll).double().sum() / count.sum())
    n = len(each)
    found = {
        "nll": Metric(mean, n, each),
        "perplexity": Metric(math.exp(min(mean, 700.0)), n),
        "token_accuracy": Metric(float(torch.cat(right).double().sum() / count.sum()), n),
    }
    if apart:
        found["teacher_kl"] = Metric(float(torch.cat(apart).double().mean()), n)
        found["agreement"] = Metric(float(torch.cat(agree).double().mean()), n)
    return found


def _logits(run: Run, model: nn.Module, batch: Batch, view: str) -> Tensor:
    with torch.no_grad(), run.device_info.autocast():
        logits = as_output(model(batch.views[view])).logits
    assert logits is not None
    return logits.float()


def _written(
    run: Run,
    role: str,
    split: str,
    judge: Callable[..., Scores],
    examples: Callable[[Run, str], list[Example]],
) -> dict[str, Metric]:
    last = run.stage == "evaluate"
    count = int(run.cfg["eval_answers" if last else "val_answers"])
    asked = examples(run, split)[:count] if count else examples(run, split)
    prompts = list(map(_prompt_of(run, role), asked))
    tokenizer, beams = vocabulary(run.cfg, role), int(run.cfg.get("eval.beams", 1)) if last else 1
    sure = last and "mode_probability" in run.task.metrics
    found = {}
    for width, suffix in ((1, ""), (beams, "[beam]")):
        if suffix and beams == 1:
            continue
        replies = write(run, role, tokenizer, prompts, beams=width, logprobs=sure)
        answers = [reply.samples[0].text for reply in replies]
        for name, value in judge(run, asked, answers).items():
            items = value.double() if isinstance(value, Tensor) else None
            level = float(items.mean()) if items is not None else float(value)
            found[f"{name}{suffix}"] = Metric(level, len(asked) if items is None else len(items), items)
        if sure:
            chance = torch.tensor([math.exp(sum(reply.samples[0].logprobs or [])) for reply in replies])
            found[f"mode_probability{suffix}"] = Metric(float(chance.double().mean()), len(asked), chance)
    return found
