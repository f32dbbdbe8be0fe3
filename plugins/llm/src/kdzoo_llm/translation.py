"""What translation tasks share: corpus BLEU of what a model writes, and how much it believes in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo_llm.decoding import Way, score
from kdzoo_llm.language import answers, measure, view_of_role
from kdzoo_llm.models import LanguageModel

if TYPE_CHECKING:
    from kdzoo.runs import Run

BELIEVED = 200  # rows of which the probability of the written answer is averaged; the paper takes "the first" sentences


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """BLEU of greedy answers; in the last stage of answers by `eval.beams` beams too, and the share of probability that
    lies on the greedy answer."""
    found = measure(run, split)
    references = [example.answer for example in run.data(split).items.examples]
    for role, suffix in run.shipped():
        view = view_of_role(run, role, split)
        longest = run.data(split).items.readings[view].answer_length
        greedy = answers(run, role, split, Way(longest), view)
        found[f"bleu{suffix}"] = Metric(bleu(greedy, references), len(greedy))
        if run.stage != "evaluate":
            continue
        beams = answers(run, role, split, Way(longest, beams=int(run.cfg["eval.beams"])), view)
        found[f"bleu{suffix}[beam]"] = Metric(bleu(beams, references), len(beams))
        found[f"mode_share{suffix}"] = _mode_share(run, role, split, view, greedy)
    return found


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4 (sacrebleu, tokens between blanks: the texts are tokenised), in 0 ... 1."""
    from sacrebleu.metrics import BLEU  # 0.3 s; wanted here only

    said = BLEU(tokenize="none", force=True).corpus_score(list(texts), [list(references)])
    return float(said.score) / 100


def _mode_share(run: Run, role: str, split: str, view: str, greedy: Sequence[str]) -> Metric:
    """p(t = y) of the greedy answer y, averaged over the first rows (Kim and Rush 2016, section 5)."""
    model = run.models[role]
    assert isinstance(model, LanguageModel)
    rows = run.data(split).items.encoded(view)[:BELIEVED]
    end = [model.vocabulary.eos]
    written = [model.vocabulary.encode(text) + end for text in greedy[: len(rows)]]
    said = score(model, [row.prompt for row in rows], written)
    items = torch.tensor([sum(values) for values in said]).exp()
    return Metric(float(items.mean()), len(rows), items)
