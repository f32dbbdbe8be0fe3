"""What tasks of translation share: corpus BLEU of what is written greedily and by beams, and how sharp a model is.

BLEU is sacrebleu's, on the task's own tokens (texts are split at blanks, as multi-bleu does), with one reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo_llm.decoding import Way, write
from kdzoo_llm.language import WRITTEN_AT_ONCE, answers, measure, view_of_role
from kdzoo_llm.models import LanguageModel

if TYPE_CHECKING:
    from kdzoo.runs import Run


class Modes(NamedTuple):
    """The best hypothesis of each row, and its probability under the model (not its logarithm)."""

    texts: list[str]
    probabilities: list[float]


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """Perplexity on the references, and BLEU of greedy decoding; in the last stage also BLEU of `eval.beams` beams, the
    probability of what they have found, and the share of weights that are zero."""
    found = measure(run, split)
    references = [example.answer for example in run.data(split).items.examples[: len(run.data(split))]]
    rows = len(references)
    for role, suffix in run.shipped():
        view = view_of_role(run, role, split)
        greedy = answers(run, role, split, Way(run.data(split).items.readings[view].answer_length), view)
        found[f"bleu{suffix}"] = Metric(bleu(greedy, references), rows)
        if run.stage != "evaluate":
            continue
        best = modes(run, role, split, int(run.cfg["eval.beams"]))
        found[f"bleu{suffix}[beam]"] = Metric(bleu(best.texts, references), rows)
        sharp = torch.tensor(best.probabilities)
        found[f"mode_share{suffix}"] = Metric(float(sharp.mean()), rows, sharp)
        weights = list(run.models[role].parameters())
        zero = sum(int((weight == 0).sum()) for weight in weights)
        found[f"zero_weights{suffix}"] = Metric(zero / sum(weight.numel() for weight in weights), rows)
    return found


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4 in 0 ... 1; one reference a text."""
    from sacrebleu.metrics import BLEU  # 0.3 s; wanted here only

    said = BLEU(tokenize="none", force=True).corpus_score(list(texts), [list(references)])
    return float(said.score) / 100


def modes(run: Run, role: str, split: str, beams: int) -> Modes:
    """What beam search finds for every row of a split; hypotheses are ranked by their probability alone.

    The paper reports the mean probability of the mode over its first sentences; here over all that are measured.
    """
    data, model = run.data(split), run.models[role]
    assert isinstance(model, LanguageModel)
    view = view_of_role(run, role, split)
    rows = data.items.encoded(view)
    way = Way(data.items.readings[view].answer_length, beams=beams, length_penalty=0.0)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
    found = Modes([""] * len(rows), [0.0] * len(rows))
    model.eval()
    size = max(1, 2 * WRITTEN_AT_ONCE // beams)
    for first in range(0, len(rows), size):
        some = order[first : first + size]
        written = write(model, [rows[i].prompt for i in some], way, logprobs=True)
        assert written.logprobs is not None
        for i, ids, logprobs in zip(some, written.ids, written.logprobs, strict=True):
            found.texts[i] = model.vocabulary.decode(ids)
            found.probabilities[i] = float(torch.tensor(logprobs, dtype=torch.float64).sum().exp())
    return found
