"""The papers' data sets in their real layouts, a few rows each; tiny models in folders, as transformers saves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from kdzoo_llm.data.events import RELATIONS
from kdzoo_llm.vocabularies import SPECIALS, fast

PAIRS = [
    (f"the {a} is {b}", f"das {a} ist {b}")
    for a in ("house", "cat", "tree")
    for b in ("old", "big", "red", "here")
]


def lines(path: Path, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_wmt(root: Path) -> None:
    for part in ("train", "valid", "test"):
        for side, place in (("en", 0), ("de", 1)):
            lines(root / f"wmt14-en-de/{part}.{side}", [pair[place] for pair in PAIRS])


def squad_file(rows: int) -> dict[str, Any]:
    asked = [
        {"id": f"q{i}", "question": f"which is {i} ?", "answers": [{"text": "old", "answer_start": 0}]}
        for i in range(rows)
    ]
    return {
        "version": "1.1",
        "data": [{"title": "t", "paragraphs": [{"context": "the house is old", "qas": asked}]}],
    }


def write_squad(root: Path) -> None:
    for name, rows in (("train-v1.1.json", 120), ("dev-v1.1.json", 6)):
        lines(root / "squad" / name, [json.dumps(squad_file(rows))])


def write_infinity(root: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": f"{a} {i}"}, {"from": "gpt", "value": b}]}
        for i in range(40)
        for a, b in PAIRS
    ]
    lines(root / "Infinity-Instruct/part.jsonl", [json.dumps(row) for row in rows])


def write_gsm8k(root: Path) -> None:
    for part, count in (("train", 60), ("test", 8)):
        rows = [
            {"question": f"what is {i} and 1 ?", "answer": f"{i} and 1 is {i + 1}\n#### {i + 1}"}
            for i in range(count)
        ]
        lines(root / f"gsm8k/{part}.jsonl", [json.dumps(row) for row in rows])


def write_atomic(root: Path) -> None:
    """Three parts of ATOMIC 2020 with an event of two references, and a corpus that people have judged."""
    for part, verb in (("train", "sees"), ("dev", "has"), ("test", "wants")):
        rows = ["the house\tAtLocation\tcity", "PersonX sees ___\txWant\tto go", "PersonX naps\txNeed\tnone"]
        for thing, _ in PAIRS:
            head = f"PersonX {verb} {thing}"
            rows += [f"{head}\t{relation}\tto {part}" for relation in RELATIONS]
            rows.append(f"{head}\txWant\tto be old")
        lines(root / f"atomic2020_data-feb2021/{part}.tsv", rows)
    judged = [
        {
            "head": f"PersonX hears the {split} {i}",
            "relation": relation,
            "tail": tail,
            "split": split,
            "valid": valid,
        }
        for split, count in (("train", 8), ("val", 6), ("test", 6))
        for i in range(count)
        for relation, tail, valid in (("xWant", f"to go {i}", 2), ("xReact", f"old {i}", (-1, -9, 0)[i % 3]))
    ]
    name = "symbolic-knowledge-distillation/purification_dataset.jsonl"
    lines(root / name, [json.dumps(row) for row in judged])


WRITERS: dict[str, Callable[[Path], None]] = {
    "wmt14-en-de": write_wmt,
    "squad": write_squad,
    "infinity-instruct": write_infinity,
    "gsm8k": write_gsm8k,
    "atomic-2020": write_atomic,
}


def save_model(folder: Path, family: str, letters: str) -> None:
    """A net and its tokenizer of single letters, as a folder that ``from_pretrained`` takes."""
    ids = {token: place for place, token in enumerate(dict.fromkeys((*SPECIALS, *letters)))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    torch.manual_seed(0)
    net: Any
    if family == "llama":
        net = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(ids), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=2048,
            )
        )  # fmt: skip
    elif family == "roberta":
        net = RobertaModel(
            RobertaConfig(
                vocab_size=len(ids), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=256, type_vocab_size=1, pad_token_id=0,
            )
        )  # fmt: skip
    else:
        net = T5ForConditionalGeneration(
            T5Config(
                vocab_size=len(ids),
                d_model=16,
                d_kv=8,
                d_ff=32,
                num_layers=1,
                num_heads=2,
                decoder_start_token_id=0,
            )
        )
    net.save_pretrained(folder)
    fast(tokenizer).save_pretrained(folder)
