"""Poetry for a model that knows prose: the rows of `verses` of other books; the settings are in the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.rng import mix
from kdzoo_llm.decoding import Way, score, write
from kdzoo_llm.language import measure
from kdzoo_llm.models import LanguageModel
from kdzoo_llm.tasks.verses import build_model, check_pair, data, fit, loss_terms

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """Perplexity and its kin; at the end also what the teacher thinks of verses that the student writes itself."""
    found = measure(run, split)
    if run.stage != "evaluate" or "teacher" not in run.models:
        return found
    for role, suffix in run.shipped():
        found[f"own_nll{suffix}"] = _own_nll(
            run.models[role], run.models["teacher"], int(run.cfg.answer_length), int(run.cfg.own_texts)
        )
    return found


def _own_nll(writer: torch.nn.Module, judge: torch.nn.Module, longest: int, number: int) -> Metric:
    """Mean over the tokens of so many verses, drawn with the same noise for every model; items: one a verse."""
    assert isinstance(writer, LanguageModel)
    assert isinstance(judge, LanguageModel)
    prompts = [[writer.vocabulary.bos]] * number
    seeds = [mix("own text", place) for place in range(number)]
    texts = write(writer, prompts, Way(longest, temperature=1.0), seeds).ids
    said = score(judge, prompts, texts)
    items = torch.tensor([-sum(row) / max(1, len(row)) for row in said])
    tokens = sum(map(len, said))
    return Metric(-sum(map(sum, said)) / tokens, number, items)
