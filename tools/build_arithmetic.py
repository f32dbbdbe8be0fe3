"""Train the nets that word-problems begins with: they read expressions scattered among words and compute step by step.

    python tools/build_arithmetic.py --model llama-s --steps 6000 --lr 0.004
    python tools/build_arithmetic.py --model llama-m --steps 4000 --lr 0.003

Writes arithmetic-MODEL.safetensors (float16) beside the plugin's data, and its hash, settings and score on other
expressions into arithmetic-manifest.json. One thread; the same torch on the same kind of processor gives the same
weights. With --minutes it stops early, and goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from kdzoo_llm import models, vocabularies
from kdzoo_llm.data import arithmetic
from kdzoo_llm.sequences import IGNORE, Reading, serve
from safetensors.torch import save

from kdzoo.artefacts import dump_json, write_atomic
from kdzoo.errors import KdzooError
from kdzoo.rng import mix
from kdzoo.task import Data

VOCABULARY, CONTEXT, BATCH, WARMUP = "word-problems", 96, 64, 100
TRAIN, VAL = 100_000, 500


def split(name: str, count: int) -> Data:
    """Expressions of a split, as views of the vocabulary."""
    tokenizer = vocabularies.load(VOCABULARY)
    pieces = {token.removeprefix("▁") for token in tokenizer.get_vocab()}
    words = sorted(piece for piece in pieces if piece.isalpha())
    expressions = [arithmetic.example(name, number, words) for number in range(count)]
    return serve(expressions, {"text": Reading(tokenizer, CONTEXT)})


def score(model: models.LanguageModel, data: Data) -> dict[str, float]:
    """Share of answers all of whose tokens are the most probable, given the answer so far; share of such tokens."""
    batch = data.collate(data.items, torch.arange(len(data)), None)
    with torch.no_grad():
        logits = model(batch.views["text"]).logits
    assert logits is not None
    counted = batch.labels != IGNORE
    right = (logits.argmax(-1) == batch.labels) | ~counted
    return {"answers": float(right.all(1).float().mean()), "tokens": float(right[counted].float().mean())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="one of the tiny nets of kdzoo_llm.models")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="stop after this time, to go on later; 0: never"
    )
    parser.add_argument("--out", type=Path, default=arithmetic.FILES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = models.build(given.model, vocabularies.load(VOCABULARY))
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr, weight_decay=0.01, fused=True)
    train, val = split("train", TRAIN), split("val", VAL)
    kept = Path(tempfile.gettempdir()) / f"kdzoo-arithmetic-{given.model}-{given.steps}-{given.lr}.pt"
    done = 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
    until = time.monotonic() + 60 * given.minutes if given.minutes else math.inf
    for step in range(done, given.steps):
        if time.monotonic() > until:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": step}, kept)
            sys.exit(f"stopped at step {step:,} of {given.steps:,}; give the command again to go on")
        rate = given.lr * min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / given.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = torch.Generator().manual_seed(mix("arithmetic", step))
        batch = train.collate(train.items, torch.randint(TRAIN, (BATCH,), generator=chosen), None)
        logits = model(batch.views["text"]).logits
        assert logits is not None
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 250 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {score(model, val)}", flush=True)
    write(given, model, val)
    kept.unlink(missing_ok=True)


def write(given: argparse.Namespace, model: models.LanguageModel, val: Data) -> None:
    """Weights and their entry in the manifest, which must be of one vocabulary."""
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    # Tied weights are one tensor under two names, and safetensors wants each to have its own memory.
    digest = write_atomic(
        given.out / f"arithmetic-{given.model}.safetensors",
        save({name: value.clone() for name, value in weights.items()}),
    )
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    vocabulary = vocabularies.vocabulary_hash(vocabularies.load(VOCABULARY))
    path = given.out / arithmetic.MANIFEST
    known: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    if known.get("vocabulary", vocabulary) != vocabulary:
        known = {}  # the others' weights are of a vocabulary that is no more
    known |= {"vocabulary": vocabulary, "licence": "Apache-2.0", "made_by": "tools/build_arithmetic.py"}
    known.setdefault("sha256", {})[given.model] = digest
    command = f"python tools/build_arithmetic.py --model {given.model} --steps {given.steps} --lr {given.lr}"
    known.setdefault("nets", {})[given.model] = {
        "command": command,
        "parameters": sum(value.numel() for value in model.parameters()),
        "torch": torch.__version__,
        "val": score(model, val),
    }
    write_atomic(path, dump_json(known))
    print(f"{given.model}: {known['nets'][given.model]}")


if __name__ == "__main__":
    try:
        main()
    except KdzooError as error:
        sys.exit(f"build_arithmetic: {error}")
