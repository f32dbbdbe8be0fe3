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
    found = measure(run, split, judge)
    if run.stage != "evaluate":
        return found
    for role, suffix in run.shipped():
        model, view = run.models[role], view_of_role(run, role, split)
        assert isinstance(model, LanguageModel)
        longest = run.data(split).items.readings[view].answer_length
        beams = int(run.cfg["eval.beams"])
        texts = answers(run, role, split, Way(longest, beams=beams), view)
        found[f"bleu{suffix}[beam]"] = Metric(bleu(texts, references(run, split)), len(texts))
        found[f"mode_share{suffix}"] = _mode_share(run, role, split, view)
    return found


def judge(run: Run, texts: Sequence[str], split: str) -> dict[str, Metric]:
    """Corpus BLEU against the one reference."""
    return {"bleu": Metric(bleu(texts, references(run, split)), len(texts))}


def references(run: Run, split: str) -> list[str]:
    """The true answers of a split."""
    return [example.answer for example in run.data(split).items.examples]


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4 (sacrebleu, tokens between blanks: the texts are tokenised), in 0 ... 1."""
    from sacrebleu.metrics import BLEU  # 0.3 s; wanted here only

    said = BLEU(tokenize="none", force=True).corpus_score(list(texts), [list(references)])
    return float(said.score) / 100


def _mode_share(run: Run, role: str, split: str, view: str) -> Metric:
    """p(t = y) of the greedy answer y, averaged over the first rows (Kim and Rush 2016, section 5)."""
    model = run.models[role]
    assert isinstance(model, LanguageModel)
    rows = run.data(split).items.encoded(view)[:BELIEVED]
    texts = answers(run, role, split, view=view)[: len(rows)]
    end = [model.vocabulary.eos]
    written = [model.vocabulary.encode(text) + end for text in texts]
    said = score(model, [row.prompt for row in rows], written)
    items = torch.tensor([sum(values) for values in said]).exp()
    return Metric(float(items.mean()), len(rows), items)
