"""Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs (2024,
https://arxiv.org/abs/2402.12030); card: uld.

The teacher writes answers to the training questions, with a tokenizer of its own. The student learns them by
cross-entropy, and compares its distribution at each of its tokens with the teacher's at the token of the same number:
sorted, padded with zeros, summed absolute differences (C3, C4). That tokens of equal number stand for different text is
the method's; with a shared tokenizer they stand for the same.

Official code: Nicolas-BZRD/llm-recipes@ab6e798 models/distillation_model.py. Not here: the few-shot prompts of chat
teachers (a teacher reads the view "teacher", which a task may make as it likes).

Shapes: B rows, A_s and A_t answer tokens of the student and of the teacher, V_s and V_t their vocabularies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.transport import sorted_transport
from kdzoo.method import Batch, Output, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo.speakers.corpus import Corpus, speak
from kdzoo.speakers.speech import Request
from kdzoo.task import Data
from kdzoo_llm.data.examples import Example
from kdzoo_llm.language import TEACHER, taught
from kdzoo_llm.sequences import TEXT
from kdzoo_llm.served import rows_of, serve_examples
from kdzoo_llm.teachers import speaker_of

if TYPE_CHECKING:
    from kdzoo.runs import Run
    from kdzoo.settings import Settings


def plan(cfg: Settings) -> list[Stage]:
    """C1, then C4; without teacher text the references are learnt."""
    if not cfg.teacher_text:
        return [fit_stage(), evaluate_stage()]
    teacher = (Role("teacher", "frozen", "task"),)
    write = Stage("answers", "kdzoo_llm.methods.uld:answers", reads=WRITING, seeded=False, roles=teacher)
    return [write, fit_stage(needs=("answers",)), evaluate_stage()]


WRITING: tuple[str, ...] = (
    "teacher*", "vocabulary", "prompt_length", "answer_length", "pad", "answers", "temperature_of_text", "endpoint.*",
    "labelled", "pretrained", "features",
)  # fmt: skip


def answers(run: Run) -> None:
    """C1: the teacher answers the training questions, `answers` times each."""
    temperature = float(run.cfg.temperature_of_text)
    requests = [
        Request(
            id=example.id,
            prompt=example.prompt,
            n=int(run.cfg.answers),
            max_tokens=int(run.cfg.answer_length) - 1,
            temperature=temperature,
        )
        for example in rows_of(run, "train")
    ]
    speak(run, speaker_of(run), requests)


def data(run: Run, split: str) -> Data | None:
    """The training questions with the teacher's answers."""
    if split != "train" or "answers" not in run.inputs:
        return None
    corpus = Corpus(run.inputs["answers"])
    written = [
        Example(f"{example.id}/{number}", example.prompt, text)
        for example in rows_of(run, split)
        for number, text in enumerate(corpus[example.id].texts)
    ]
    return serve_examples(run, written)


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """C4: mean over the rows of the mean over the common tokens."""
    own, read = batch.views[TEXT], batch.views.get(TEACHER, batch.views[TEXT])
    # The masks are those of the views: asked for its mask, a recorded teacher would have to be asked live.
    values = uld(
        Output(logits=run.out("student").logits, mask=own["answer_mask"]),
        Output(logits=taught(run).logits, mask=read["answer_mask"]),
        temperature=(float(run.cfg.student_temperature), float(run.cfg.teacher_temperature)),
        skip_student_end=bool(run.cfg.skip_student_end),
        skip_teacher_end=bool(run.cfg.skip_teacher_end),
    )
    return {"uld": Term(values.sum(), weight=float(run.cfg.uld_weight), per="item")}


def uld(
    student: Output,
    teacher: Output,
    *,
    temperature: tuple[float, float],
    skip_student_end: bool,
    skip_teacher_end: bool,
) -> Tensor:
    """Universal Logit Distillation loss of each row.

    Formula: (1 / m) sum_{j < m} sum_i |p_j^(i) - q_j^(i)|, with m the smaller number of answer tokens, and both
    distributions in falling order, padded with zeros.

    Args:
        student: logits (B, A_s, V_s) that predict the answer's tokens, mask (B, A_s) of its tokens.
        teacher: logits (B, A_t, V_t), mask (B, A_t).
        temperature: of the student and of the teacher.
        skip_student_end: leave out the student's last token, its end token (official: true; a chat teacher has none).
        skip_teacher_end: the same for the teacher.

    Returns:
        (B,) between 0 and 2, no unit; 0 for a row without common tokens.

    Source: Boizard et al. 2024, equation of L_ULD; Nicolas-BZRD/llm-recipes@ab6e798
    models/distillation_model.py:DistillationLoss.forward.
    """
    assert student.logits is not None
    assert student.mask is not None
    assert teacher.logits is not None
    assert teacher.mask is not None
    common = torch.minimum(
        student.mask.sum(1) - int(skip_student_end), teacher.mask.sum(1) - int(skip_teacher_end)
    ).clamp(min=0)
    longest = int(common.max())
    if not longest:
        return student.logits.sum((1, 2)) * 0.0
    mask = torch.arange(longest, device=common.device) < common.unsqueeze(1)
    distances = sorted_transport(
        student.logits[:, :longest],
        teacher.logits[:, :longest],
        temperature=temperature,
        axis=-1,
        mask=mask,
        reduction="none",
    )
    return distances.sum(1) / common.clamp(min=1)
