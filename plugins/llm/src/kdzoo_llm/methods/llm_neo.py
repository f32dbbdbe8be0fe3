"""LLM-Neo: Parameter Efficient Knowledge Distillation for Large Language Models (2024,
https://arxiv.org/abs/2411.06839); card: llm-neo.

Low-rank adapters on every linear layer of the student (C1, `kdzoo_llm.adapters`), trained with
(1 - a) cross-entropy + a KL(teacher || student) on the answer's tokens (C2), merged when training is over (C6). With
`rank = 0` the same losses train all weights: the four arms of the paper are a = 0 or not, rank = 0 or not (C4).

Official code: yang3121099/LLM-Neo@48b730a src/llamafactory/train/sft/trainer.py. Its KL takes the logits AT the
answer's tokens, not those that predict them (``shift = "official"``); ours are shifted as the cross-entropy is.
Not here: the LoRA variants (MoSLoRA).

Shapes: B rows, A answer tokens, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Term
from kdzoo_llm.adapters import build_model, fit
from kdzoo_llm.language import taught

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "fit", "loss_terms"]


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """C2: a KL; the task's cross-entropy has the weight 1 - a (`task_weight`)."""
    student, teacher = run.out("student").logits, taught(run).logits
    assert student is not None
    assert teacher is not None
    total = neo_kl(student, teacher, batch.labels >= 0, shift=str(run.cfg.shift)).sum()
    return {"kd": Term(total, weight=float(run.cfg.kd_ratio), per="token")}


def neo_kl(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, *, shift: str = "correct") -> Tensor:
    """KL(teacher || student) of each token, nats.

    Args:
        student_logits, teacher_logits: (B, A, V) that predict the answer's tokens.
        mask: (B, A) bool.
        shift: "correct", or "official": the distribution behind a token stands for the token, so that the first
            token's is left out and, the last one having none behind it here, the last one's too.

    Returns:
        (B, A); 0 where nothing counts.

    Source: yang3121099/LLM-Neo@48b730a trainer.py:compute_loss; differs in `shift` because the official mask is that
    of unshifted labels.
    """
    if shift == "official":
        mask = mask.clone()
        mask[:, 0] = False
    return kl_divergence(student_logits, teacher_logits, temperature=1.0, axis=2, mask=mask, reduction="none")
