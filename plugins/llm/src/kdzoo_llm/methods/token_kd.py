"""Token-level distillation of language models, by any divergence: the plain baseline of the tasks here; card: token-kd.

Forward KL is Hinton's knowledge distillation (2015, https://arxiv.org/abs/1503.02531) applied to each token with the
reference as its prefix, the word-level distillation of Kim and Rush (2016, https://arxiv.org/abs/1606.07947). Reverse
KL is the direction of MiniLLM (2023, https://arxiv.org/abs/2306.08543), here with the reference as prefix and without
its policy gradient; JSD that of GKD (2023, https://arxiv.org/abs/2306.13649); skew KL that of DistiLLM (2024,
https://arxiv.org/abs/2402.03898). On-policy prefixes are the method gkd.

Shapes: B rows, A answer tokens, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch, Term
from kdzoo_llm.divergence import token_divergence
from kdzoo_llm.language import taught

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """T^2 times the divergence from the teacher at each token of the answer."""
    student, teacher = run.out("student"), taught(run)
    assert student.logits is not None
    assert teacher.logits is not None
    total = token_divergence(run.cfg, student.logits, teacher.logits, batch.labels >= 0)
    weight = float(run.cfg.kd_weight) * float(run.cfg.temperature) ** 2
    return {"kd": Term(total, weight=weight, per="token")}
