"""Mentor-KD: making small language models better multi-step reasoners (Lee et al., EMNLP 2024).

arXiv:2410.09037; card: mentor-kd. A large teacher can only be asked for text, and its chains of thought are few and
partly wrong. A model of medium size is trained on those whose answer is right; this mentor then writes further ones
for all training questions, and teaches the student its distribution of each token, too.

Here: the teacher's rationales, by a script or an endpoint in two prompts (C1), their text (C2), the mentor (C3), its
rationales (C4), the joint training set (C5), the student's loss (C6); the answer's extraction (C7) is in
`kdzoo_llm.data.extraction`, and a task's own in the task. Not here: the official mode `hidden`, which does not run
there either; LoRA.

Shapes: B rows, A tokens of a rationale with its answer (padded on the right), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from kdzoo import catalog
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence, soft_cross_entropy
from kdzoo.losses.features import hint_regression
from kdzoo.losses.masks import Reduction, reduce
from kdzoo.method import Batch, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo.speakers.corpus import Corpus, speak
from kdzoo.speakers.endpoint import EndpointSpeaker
from kdzoo.speakers.settings import Endpoint
from kdzoo.speakers.speech import Request
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.reasoning import ARROW, target
from kdzoo_llm.language import readings, taught
from kdzoo_llm.sequences import data_of
from kdzoo_llm.served import rows_of
from kdzoo_llm.teachers import local_speaker
from kdzoo_llm.vocabularies import open_vocabulary

if TYPE_CHECKING:
    from kdzoo.runs import Run
    from kdzoo.settings import Settings
    from kdzoo.task import Data

Terms = list[dict[str, Term]]
IsCorrect = Callable[[Example, str], bool]

MENTOR = Role("teacher", "frozen", "stage:mentor")

# What only training reads: text that is asked for stays the same whatever these are.
TRAINING = (
    "steps", "batch", "lr", "weight_decay", "optimizer", "schedule", "warmup", "accumulate", "eval_every", "clip",
    "task_weight", "student", "mentor_steps", "mentor_lr", "*_filter", "soft_*", "temperature", "mask", "eval.*",
)  # fmt: skip
ASKING = ("endpoint.*", "rationale_prompt", "answer_prompt", "teacher_tokens", "teacher_temperature")


def plan(cfg: Settings) -> list[Stage]:
    """Ask the teacher, train the mentor, let it write, train the student; mentor and texts are shared by all seeds."""
    _check(cfg)
    explain = Stage(
        "explain", f"{__name__}:explain", reads=_without(*TRAINING, "teacher", "mentor_*"), seeded=False
    )
    # Constant whatever the arm says about its student: so all arms have the same mentor.
    own = {
        "steps": cfg.mentor_steps,
        "lr": cfg.mentor_lr,
        "student": cfg.teacher,
        "task_weight": 1.0,
        "mentor_rationales": 0,
        "mentor_temperature": 1.0,
        "mentor_filter": True,
        "soft_weight": 0.0,
        "soft_loss": "kl",
        "temperature": 1.0,
        "mask": "answer",
    }
    learnt = _without("eval.*", *ASKING)
    mentor = fit_stage(
        "mentor", needs=("explain",), reads=learnt, set=own, seeded=False, roles=(Role("student"),)
    )
    augment = Stage(
        "augment",
        f"{__name__}:augment",
        needs=("mentor",),
        reads=_without(*TRAINING, *ASKING, "explained", "teacher_rationales"),
        seeded=False,
        roles=(MENTOR,),
    )
    made, needs = [explain], ["explain"]
    if cfg.mentor_rationales or cfg.soft_weight:
        made.append(mentor)
        needs.append("mentor")
    if cfg.mentor_rationales:
        made.append(augment)
        needs.append("augment")
    taught_by = (MENTOR,) if cfg.soft_weight else ()
    fit = fit_stage(needs=tuple(needs), reads=learnt, roles=(Role("student"), *taught_by))
    return [*made, fit, evaluate_stage(roles=(MENTOR,) if mentor in made else ())]


def _without(*names: str) -> tuple[str, ...]:
    """All settings but these."""
    return ("*", *(f"!{name}" for name in names))


def _check(cfg: Settings) -> None:
    """Refuse before anything is asked for or trained."""
    own = str(cfg.get("teacher_vocabulary", ""))
    if own not in ("", str(cfg.vocabulary)):
        raise KdzooError(
            f"teacher_vocabulary is {own!r}, vocabulary {cfg.vocabulary!r}: the mentor is trained on what the student "
            "reads, and token k of one must be token k of the other. Leave teacher_vocabulary empty."
        )
    for name, field in (("rationale_prompt", "{question}"), ("answer_prompt", "{rationale}")):
        if field not in str(cfg[name]):
            raise KdzooError(
                f"{name} is {cfg[name]!r}, without {field}: every question would be asked in the same words. Put "
                f"{field} where it belongs."
            )


# --- C1, C4: rationales of the teacher and of the mentor ----------------------------------------------------------


def explain(run: Run) -> None:
    """C1, a stage: ask the teacher about the first `explained` training questions (0: all)."""
    questions = questions_of(run)[: int(run.cfg.explained) or None]
    n, temperature = int(run.cfg.teacher_rationales), float(run.cfg.teacher_temperature)
    length = int(run.cfg.teacher_tokens)
    if not run.cfg.get("endpoint.base_url", ""):
        asked = [
            Request(id=row.id, prompt=row.prompt, n=n, temperature=temperature, max_tokens=length)
            for row in questions
        ]
        speak(run, of_task(run, "speaker")(run), asked)
        return
    speaker = EndpointSpeaker(Endpoint.of(run.cfg))
    cue, ask = str(run.cfg.rationale_prompt), str(run.cfg.answer_prompt)
    asked = [
        Request(
            id=row.id,
            prompt=cue.replace("{question}", row.prompt),
            n=n,
            temperature=temperature,
            max_tokens=length,
        )
        for row in questions
    ]
    said = speak(run, speaker, asked, name="rationales")
    # The second prompt of zero-shot chains of thought: what follows from the first answer, greedily.
    again = [
        Request(
            id=f"{row.id}#{number}",
            prompt=ask.replace("{question}", row.prompt).replace("{rationale}", text),
            temperature=0,
            max_tokens=length,
        )
        for row in questions
        for number, text in enumerate(said[row.id].texts)
        if text.strip()
    ]
    speak(run, speaker, again, name="answers")


def augment(run: Run) -> None:
    """C4, a stage: let the mentor explain every training question."""
    asked = [
        Request(
            id=row.id,
            prompt=row.prompt,
            n=int(run.cfg.mentor_rationales),
            temperature=float(run.cfg.mentor_temperature),
            max_tokens=int(run.cfg.answer_length),
        )
        for row in questions_of(run)
    ]
    speak(run, local_speaker(run, batch=256), asked)


def written(folder: Path) -> dict[str, list[str]]:
    """What a stage's speaker wrote about each question, as "<rationale> --> <answer>" where it said so."""
    if not Corpus(folder, "rationales").path.is_file():
        return {reply.id: reply.texts for reply in Corpus(folder)}
    answers = Corpus(folder)
    return {
        reply.id: [
            target(text, answers[f"{reply.id}#{number}"].texts[0]) if text.strip() else ""
            for number, text in enumerate(reply.texts)
        ]
        for reply in Corpus(folder, "rationales")
    }


# --- C2, C3, C5: the training set ---------------------------------------------------------------------------------


class Kept(NamedTuple):
    """Training rows, and what became of the texts they were taken from.

    Attributes:
        rows: "<rationale> --> <right answer>" behind their questions.
        counts: texts "written", "wrong" (left out by the filter), "empty", "too_long", "kept".
    """

    rows: list[Example]
    counts: dict[str, int]


def choose(
    questions: Sequence[Example],
    texts: Mapping[str, Sequence[str]],
    *,
    mark: str,
    is_correct: IsCorrect | None,
    length: Callable[[str], int],
    longest: int,
) -> Kept:
    """C1, C2, C4: keep texts whose answer is right, and put the right answer behind their rationales.

    Args:
        questions: with the right answers.
        texts: of some of them, by id.
        mark: of the writer, in the ids of the rows.
        is_correct: whether a text ends in a question's right answer; None keeps all.
        length: tokens of a text with its end.
        longest: rows of more tokens are left out.
    """
    counts = dict.fromkeys(("written", "wrong", "empty", "too_long", "kept"), 0)
    rows = []
    for question in questions:
        for number, text in enumerate(texts.get(question.id, ())):
            counts["written"] += 1
            rationale = rationale_of(text)
            row = target(rationale, question.answer)
            if not rationale:
                fate = "empty"
            elif is_correct is not None and not is_correct(question, text):
                fate = "wrong"
            elif length(row) > longest:
                fate = "too_long"
            else:
                fate = "kept"
                rows.append(Example(f"{question.id}#{mark}{number}", question.prompt, row))
            counts[fate] += 1
    return Kept(rows, counts)


def rationale_of(text: str) -> str:
    """What stands before the first arrow; all of a text without one."""
    return text.partition(ARROW)[0].strip()


def data(run: Run, split: str) -> Data | None:
    """C5: the teacher's rationales and, where the mentor has written, its own, not told apart."""
    if split != "train" or "explain" not in run.inputs:
        return None
    questions, right = questions_of(run), of_task(run, "is_correct")
    vocabulary = open_vocabulary(str(run.cfg.vocabulary))

    def chosen(stage: str, mark: str, filtered: bool) -> Kept:
        return choose(
            questions,
            written(run.inputs[stage]),
            mark=mark,
            is_correct=right if filtered else None,
            length=lambda text: len(vocabulary.encode(text)) + 1,
            longest=int(run.cfg.answer_length),
        )

    parts = {"teacher": chosen("explain", "t", bool(run.cfg.teacher_filter))}
    if "augment" in run.inputs:
        parts["mentor"] = chosen("augment", "m", bool(run.cfg.mentor_filter))
    run.facts["rationales"] = {writer: kept.counts for writer, kept in parts.items()}
    rows = [row for kept in parts.values() for row in kept.rows]
    if not rows:
        raise KdzooError(
            f"no rationale is left to learn from: {run.facts['rationales']}. Look at what the teacher wrote "
            f"({run.inputs['explain']}): raise explained or teacher_rationales, raise answer_length if rows are too "
            "long, or ask a teacher whose answers are right more often."
        )
    return data_of(rows, readings(run.cfg))


def questions_of(run: Run) -> list[Example]:
    """The task's training questions with their right answers."""
    return list(rows_of(run, "train"))


def of_task(run: Run, name: str) -> Callable[..., Any]:
    """A function that the task's module has for methods that ask for rationales: `speaker` or `is_correct`."""
    found: Callable[..., Any] | None = getattr(catalog.load().module(run.spec.task), name, None)
    if found is None:
        raise KdzooError(
            f"the task {run.spec.task!r} has no function {name!r}: mentor-kd needs to know whom to ask (or an "
            "endpoint: --set endpoint.base_url=...), and which answers are right. Choose a task of kind reasoning."
        )
    return found


# --- C6: the loss -------------------------------------------------------------------------------------------------


def soft_label_loss(
    student: Tensor,
    mentor: Tensor,
    *,
    form: str,
    temperature: float,
    reduction: Reduction,
    mask: Tensor | None = None,
    teacher_grad: bool = False,
) -> Tensor:
    """How far the student's next tokens are from the mentor's.

    "kl": ``KL(softmax(z_m / T) || softmax(z_s / T))``, without T^2; "mse": mean over V of ``(z_s - z_m)^2``;
    "ce": ``-sum softmax(z_m) log softmax(z_s)``, without a temperature.

    Args:
        student, mentor: (B, A, V) logits of one vocabulary.
        form: "kl", "mse" or "ce".
        temperature: T > 0, of "kl".
        reduction: "none" = one value a token, "mean" or "sum" over the tokens that count.
        mask: (B, A) bool, True where a token counts; None counts padding, too, as the official code does.
        teacher_grad: let the gradient reach the mentor too; never so in training.

    Returns:
        (B, A) or scalar; nats, or squared logits.

    Raises:
        ValueError: shapes differ, or no such form.

    Source: 2hojae/mentor-kd@ec9ea11 src/kd_tools.py, scripts/kd/mentor_kd.py; the mask differs there, see the card.
    """
    if form in ("kl", "ce"):
        divergence = kl_divergence if form == "kl" else soft_cross_entropy
        return divergence(
            student,
            mentor,
            temperature=temperature if form == "kl" else 1.0,
            axis=-1,
            reduction=reduction,
            mask=mask,
            teacher_grad=teacher_grad,
        )
    if form != "mse":
        raise ValueError(f"form: got {form!r}, expected 'kl', 'mse' or 'ce'")
    apart = hint_regression(
        student.flatten(0, -2), mentor.flatten(0, -2), reduction="none", teacher_grad=teacher_grad
    )
    return reduce(apart.view(student.shape[:-1]), reduction=reduction, mask=mask)


@hookimpl
def prepare_batch(run: Run, batch: Batch) -> None:
    """Count the positions of the student's answers, padding included: what the official code divides by."""
    if run.cfg.soft_weight and run.cfg.mask == "official":
        batch.counts["position"] = batch.labels.numel()


@hookimpl(wrapper=True)
def loss_terms(run: Run, batch: Batch) -> Generator[None, Terms, Terms]:
    """``(1 - lambda) CE + lambda soft``; a wrapper, since the task's own term gets the first weight."""
    others = yield
    weight, form = float(run.cfg.soft_weight), str(run.cfg.soft_loss)
    if not weight:
        return others
    if form == "ce":
        weight = 1.0  # 2hojae/mentor-kd@ec9ea11 scripts/kd/mentor_kd.py: alone
    student, mentor = run.out("student").logits, taught(run).logits
    assert student is not None
    assert mentor is not None
    official = run.cfg.mask == "official"
    total = soft_label_loss(
        student,
        mentor,
        form=form,
        temperature=float(run.cfg.temperature),
        reduction="sum",
        mask=None if official else batch.labels >= 0,
    )
    scaled = [
        {
            name: term._replace(weight=term.weight * (1 - weight)) if name == "task" else term
            for name, term in part.items()
        }
        for part in others
    ]
    return [*scaled, {"soft": Term(total, weight, per="position" if official else "token")}]
