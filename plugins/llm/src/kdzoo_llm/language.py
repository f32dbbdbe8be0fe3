"""What all language tasks share: models by name, cross-entropy on the answer's tokens, perplexity, written answers.

A task's module imports these hooks and adds ``data``; what its rows look like to the student and to the teacher it
says with `readings`. A task that judges what is written defines ``judge(run, texts, split) -> dict[str, Metric]`` and
hands it to `measure`. Shapes: B rows, A answer tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdzoo.cards import Side, TaskCard
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Metric, Output, Term
from kdzoo_llm.data.examples import Example
from kdzoo_llm.decoding import Way, write
from kdzoo_llm.models import LanguageModel, build
from kdzoo_llm.sequences import TEXT, Reading
from kdzoo_llm.vocabularies import Vocabulary, open_vocabulary

if TYPE_CHECKING:
    from kdzoo.runs import Run

TEACHER = "teacher"
"""The view that the teacher reads where it is not the student's: another vocabulary, or another prompt."""

PREDICTED_AT_ONCE, WRITTEN_AT_ONCE = 128, 256


def readings(
    cfg: Mapping[str, Any],
    *,
    teacher_prompt: Callable[[Example], str] | None = None,
    student_prompt: Callable[[Example], str] | None = None,
) -> dict[str, Reading]:
    """How student and teacher read an example, by the settings `vocabulary`, `teacher_vocabulary`, `prompt_length`,
    `answer_length`, `pad`. The teacher has a view of its own only where it reads something else."""
    fixed = cfg.get("pad", "batch") == "fixed"
    student = Reading(
        open_vocabulary(str(cfg["vocabulary"])),
        int(cfg["prompt_length"]),
        int(cfg["answer_length"]),
        student_prompt,
        fixed=fixed,
    )
    own = str(cfg.get("teacher_vocabulary", "") or cfg["vocabulary"])
    if own == str(cfg["vocabulary"]) and teacher_prompt is None:
        return {TEXT: student}
    teacher = Reading(
        open_vocabulary(own),
        int(cfg.get("teacher_prompt_length", cfg["prompt_length"])),
        int(cfg.get("teacher_answer_length", cfg["answer_length"])),
        teacher_prompt or student_prompt,
        fixed=fixed,
    )
    return {TEXT: student, TEACHER: teacher}


def context(cfg: Mapping[str, Any]) -> int:
    """Tokens that every model of a task must hold."""
    student = int(cfg["prompt_length"]) + int(cfg["answer_length"])
    teacher = int(cfg.get("teacher_prompt_length", cfg["prompt_length"])) + int(
        cfg.get("teacher_answer_length", cfg["answer_length"])
    )
    return max(student, teacher)


def vocabulary_of(cfg: Mapping[str, Any], role: str) -> Vocabulary:
    """The vocabulary of a role by the settings."""
    own = str(cfg.get("teacher_vocabulary", "")) if role == "teacher" else ""
    return open_vocabulary(own or str(cfg["vocabulary"]))


def wants_features(run: Run) -> bool:
    """Whether the method of this run looks at inner states; they are not kept for nothing."""
    return run.method is not None and "features" in run.method.teacher


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """Student and teacher by the names in the settings."""
    if role not in ("student", "teacher"):
        return None
    return build_role(run, role)


def build_role(run: Run, role: str, name: str = "") -> LanguageModel:
    """The model of a role: the one that the setting of its name says, or `name`."""
    cfg = run.cfg
    model = build(
        name or str(cfg[role]),
        vocabulary_of(cfg, role),
        context=context(cfg),
        features=wants_features(run),
        dropout=float(cfg.get("dropout", 0.0)),
        pretrained=role == "teacher" or bool(cfg.get("pretrained", False)),
    )
    if role == "student" and cfg.get("gradient_checkpointing", False):
        model.net.gradient_checkpointing_enable()
    return model


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Cross-entropy with the answer's tokens, summed over them (nats)."""
    logits = run.out("student").logits
    assert logits is not None
    return {"task": Term(token_cross_entropy(logits, batch.labels).sum(), per="token")}


def token_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, A) nats of each token; 0 where the label is -1.

    Args:
        logits: (B, A, V).
        labels: (B, A) ids, -1 on padding.
    """
    flat = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none")
    return flat.view(labels.shape)


def taught(run: Run, role: str = "teacher") -> Output:
    """What the teacher says at the answer's tokens, on the view that is its own where it has one."""
    assert run.batch is not None
    return run.signal(role, TEACHER if TEACHER in run.batch.views else TEXT)


def check_pair(task: TaskCard, cfg: Mapping[str, Any]) -> dict[str, Side]:
    """What both sides give and which ids they mean: a task's module hands this to core, which refuses a teacher whose
    tokens are others before any weights are loaded."""
    shared = {"outputs": ["logits", "features"]}
    sides = {"student": TEXT, "teacher": TEXT}
    return {
        role: Side(**shared, vocabulary=vocabulary_of(cfg, role).hash, view=view)  # type: ignore[arg-type]
        for role, view in sides.items()
    }


# --- measuring ----------------------------------------------------------------------------------------------------

Judge = Callable[["Run", Sequence[str], str], dict[str, Metric]]
"""Takes what a model wrote for each row of a split; gives the metrics of a written answer."""


ViewOf = Callable[["Run", str, str], str]
"""Takes a role and a split; gives the view that the role reads there."""


def view_of_role(run: Run, role: str, split: str) -> str:
    """The view that a role reads on a split: the teacher its own, where there is one."""
    return TEACHER if role == "teacher" and TEACHER in run.data(split).items.readings else TEXT


def measure(
    run: Run, split: str, judge: Judge | None = None, view_of: ViewOf = view_of_role
) -> dict[str, Metric]:
    """Perplexity and token accuracy of what ships, likeness to the teacher, and what `judge` says of written answers.

    Args:
        run: its shipped roles are measured.
        split: of the task.
        judge: None where nothing need be written.
        view_of: which view a role reads.
    """
    found: dict[str, Metric] = {}
    for role, suffix in run.shipped():
        view = view_of(run, role, split)
        for name, metric in _predicted(run, role, split, view).items():
            found[f"{name}{suffix}"] = metric
        if judge is None:
            continue
        texts = answers(run, role, split, view=view)
        for name, metric in judge(run, texts, split).items():
            found[f"{name}{suffix}"] = metric
    return found


def share(right: Sequence[bool]) -> Metric:
    """The share of rows that are right; items: 1 or 0 for each."""
    hits = torch.tensor(right, dtype=torch.float32)
    return Metric(float(hits.mean()), len(hits), hits)


def _predicted(run: Run, role: str, split: str, view: str) -> dict[str, Metric]:
    """Metrics of predicted tokens of a view; items are one a row."""
    data, model = run.data(split), run.models[role]
    rows: dict[str, list[Tensor]] = {"nll": [], "accuracy": [], "agreement": [], "teacher_kl": []}
    tokens = []
    compare = (
        run.stage == "evaluate"
        and "teacher" in run.models
        and role != "teacher"
        and vocabulary_of(run.cfg, "student").hash == vocabulary_of(run.cfg, "teacher").hash
    )
    for first in range(0, len(data), PREDICTED_AT_ONCE):
        part = torch.arange(first, min(first + PREDICTED_AT_ONCE, len(data)))
        batch = run.to_device(data.collate(data.items, part, None))
        with torch.no_grad(), run.device_info.autocast():
            read = batch.views[view]
            logits, mask = model(read).logits.float(), read["answer_mask"]
            labels = read["answer"].masked_fill(~mask, -1)
            tokens.append(mask.sum(1))
            rows["nll"].append(token_cross_entropy(logits, labels).sum(1))
            rows["accuracy"].append(((logits.argmax(2) == labels) & mask).sum(1))
            if compare:
                said = run.models["teacher"](batch.views.get(TEACHER, batch.views[TEXT])).logits.float()
                rows["agreement"].append(((logits.argmax(2) == said.argmax(2)) & mask).sum(1))
                apart = kl_divergence(logits, said, temperature=1.0, axis=2, mask=mask, reduction="none")
                rows["teacher_kl"].append(apart.sum(1))
    counts = torch.cat(tokens).double()
    total = counts.sum()

    def per_token(name: str) -> Metric:
        values = torch.cat(rows[name]).double()
        return Metric(float(values.sum() / total), len(data), (values / counts).float())

    nll = per_token("nll")
    assert nll.value is not None
    found = {
        "nll": nll,
        "perplexity": Metric(float(torch.tensor(nll.value).exp()), len(data)),
        "token_accuracy": per_token("accuracy"),
    }
    if "bits_per_character" in run.task.metrics:
        letters = sum(
            len(example.answer) + 1 for example in data.items.examples[: len(data)]
        )  # the end counts as one
        bits = float(torch.cat(rows["nll"]).double().sum()) / math.log(2) / letters
        found["bits_per_character"] = Metric(bits, len(data))
    if compare:
        found |= {"agreement": per_token("agreement"), "teacher_kl": per_token("teacher_kl")}
    return found


def answers(
    run: Run, role: str, split: str, way: Way | None = None, view: str = TEXT, rows: int = 0
) -> list[str]:
    """What a model writes for every row of a split, or its first `rows`, reading a view: greedily, up to
    `answer_length` tokens, unless `way` says else."""
    data, model = run.data(split), run.models[role]
    assert isinstance(model, LanguageModel)
    way = way or Way(
        data.items.readings[view].answer_length,
        beams=int(run.cfg.get("eval.beams", 1)) if run.stage == "evaluate" else 1,
    )
    asked = data.items.encoded(view)[: rows or len(data)]  # a split may list its first rows only
    order = sorted(range(len(asked)), key=lambda i: len(asked[i].prompt))
    texts = [""] * len(asked)
    model.eval()
    for first in range(0, len(asked), WRITTEN_AT_ONCE):
        some = order[first : first + WRITTEN_AT_ONCE]
        written = write(model, [asked[i].prompt for i in some], way)
        for i, ids in zip(some, written.ids, strict=True):
            texts[i] = model.vocabulary.decode(ids)
    return texts
