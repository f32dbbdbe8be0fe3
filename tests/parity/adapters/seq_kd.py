"""Sequence-level knowledge distillation, against harvardnlp/seq2seq-attn."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor

from kdzoo_llm.translations import sentence_bleu, sentence_gleu


@parity("seq-kd", "sentence_similarity")
def similarity(case: Case) -> dict[str, Tensor]:
    def cut(name: str) -> list[list[int]]:
        sizes = case.inputs[f"{name}_len"].tolist()
        return [row[:size] for row, size in zip(case.inputs[name].tolist(), sizes, strict=True)]

    pairs = list(zip(cut("cand"), cut("ref"), strict=True))
    order = case.args["n"]
    return {
        "bleu": torch.tensor([sentence_bleu(ours, theirs, order) for ours, theirs in pairs]),
        "gleu": torch.tensor([sentence_gleu(ours, theirs, order) for ours, theirs in pairs]),
    }
