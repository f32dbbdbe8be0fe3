"""On-Policy Distillation of Language Models (Agarwal et al. 2023, https://arxiv.org/abs/2306.13649); card: gkd.

In a share `on_policy` of the batches the student writes the answers itself, at temperature 1, and learns from the
teacher's distributions along what it has written: so it is corrected where it really goes. No gradient flows through
the writing. In the other batches the prefix is the reference. The divergence is the generalised Jensen-Shannon one, or
any other of `kdzoo_llm.divergence`. Not here: its combination with a reward (equation 5).

Shapes: B rows, A answer tokens, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch, Term
from kdzoo.rng import mix
from kdzoo_llm.decoding import Way, write
from kdzoo_llm.divergence import token_divergence
from kdzoo_llm.language import TEACHER, taught
from kdzoo_llm.models import LanguageModel
from kdzoo_llm.sequences import TEXT, Encoded, view_of

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def prepare_batch(run: Run, batch: Batch) -> None:
    """Replace the answers by the student's own, in a share of the steps (Algorithm 1, line 3).

    Chance belongs to the step and to the sample, not to the micro-batch: a step that is split is the same step.
    """
    if mix(run.seed, "gkd", run.step) % 1_000_003 / 1_000_003 >= float(run.cfg.on_policy):
        return
    text = batch.views[TEXT]
    prompts = [
        ids[mask].tolist() for ids, mask in zip(text["prompt"].cpu(), text["prompt_mask"].cpu(), strict=True)
    ]
    seeds = [mix(run.seed, "gkd", run.step, name) for name in batch.ids]
    with run.weights.whole():
        student = run.models["student"]
        assert isinstance(student, LanguageModel)
        training = student.training
        student.eval()
        written = write(student, prompts, Way(int(run.cfg.answer_length), temperature=1.0), seeds)
        student.train(training)
    answers = [ids or [student.vocabulary.eos] for ids in written.ids]
    for name in (TEXT, TEACHER):
        if name not in batch.views:
            continue
        old = batch.views[name]
        rows = [
            Encoded(ids[mask].tolist(), answer)
            for ids, mask, answer in zip(old["prompt"].cpu(), old["prompt_mask"].cpu(), answers, strict=True)
        ]
        batch.views[name] = view_of(rows, student.vocabulary)
    text = batch.views[TEXT]
    batch.labels = text["answer"].masked_fill(~text["answer_mask"], -1)
    batch.counts["token"] = int(text["answer_mask"].sum())
    run.to_device(batch)


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """The divergence from the teacher along the answers at hand (equation 4)."""
    student, teacher = run.out("student"), taught(run)
    assert student.logits is not None
    assert teacher.logits is not None
    total = token_divergence(run.cfg, student.logits, teacher.logits, batch.labels >= 0)
    return {"kd": Term(total, weight=float(run.cfg.kd_weight), per="token")}
