"""Sentence similarity of Seq-Inter, against harvardnlp/seq2seq-attn (Lua)."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor

from kdzoo_llm.sentence_similarity import sentence_bleu, sentence_gleu


@parity("seq-kd", "sentence_similarity")
def similarity(case: Case) -> dict[str, Tensor]:
    inputs, order = case.inputs, int(case.args["n"])
    pairs = [
        (candidate[:c].tolist(), reference[:r].tolist())
        for candidate, c, reference, r in zip(
            inputs["cand"], inputs["cand_len"], inputs["ref"], inputs["ref_len"], strict=True
        )
    ]
    return {
        "bleu": torch.tensor([sentence_bleu(a, b, order) for a, b in pairs]),
        "gleu": torch.tensor([sentence_gleu(a, b, order) for a, b in pairs]),
    }
