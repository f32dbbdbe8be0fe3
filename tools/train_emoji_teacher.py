"""Train the teacher of the task `emoji-retrieval` and write the weights that kdzoo_vision ships.

    python tools/train_emoji_teacher.py

A four-stage CNN with a 64-d normalised embedding, trained from scratch on the train sub-groups alone: triplet loss,
margin 0.2, distance-weighted negatives, as in Relational Knowledge Distillation (CVPR 2019). The last step counts;
val is only looked at and test never opened. One thread, about 3 minutes; with the same torch on the same kind of
processor it gives the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kdzoo.losses.contrastive import distance_weighted_triples, triplet_loss
from kdzoo_vision.data import emoji
from kdzoo_vision.models import ImageModel, build

OUT = Path(__file__).parents[1] / "plugins/vision/src/kdzoo_vision/data/files"
MODEL: dict[str, Any] = {
    "name": "cnn-l4",
    "num_classes": None,
    "embedding_dim": 64,
    "in_channels": 3,
    "image_size": emoji.SIDE,
    "normalize": True,
}
MARGIN = 0.2  # lenscloth/RKD@0a6c3c0 run.py
SUBGROUPS, CONCEPTS, VIEWS = 4, 6, 4  # a batch: 4 sub-groups x 6 concepts x 4 views (each style twice)
WARM_UP = 100  # steps


def batch_rows(subgroups: list[Tensor], generator: torch.Generator) -> Tensor:
    """Rows of one batch, (96,). Whole sub-groups make the negatives hard: one bird against another.

    Small sub-groups give fewer concepts, so more than four may be needed.
    """
    concepts: list[Tensor] = []
    for k in torch.randperm(len(subgroups), generator=generator).tolist():
        members = subgroups[k]
        concepts.extend(members[torch.randperm(len(members), generator=generator)[:CONCEPTS]])
        if len(concepts) >= SUBGROUPS * CONCEPTS:
            break
    rows = torch.stack(concepts[: SUBGROUPS * CONCEPTS])  # (24, 2): the two styles of each concept
    return rows.repeat(1, VIEWS // rows.shape[1]).flatten()


def val_recalls(model: ImageModel) -> dict[str, float]:
    """Recall@1, 2, 4 over the val images of both styles, the query itself left out."""
    data = emoji.load("val")
    batch = data.collate(data.items, torch.arange(len(data)), None)
    model.eval()
    with torch.no_grad():
        rows = model(batch.views["image"]).embedding.double()
    model.train()
    distances = torch.cdist(rows, rows)
    distances.fill_diagonal_(torch.inf)
    hits = batch.labels[distances.topk(4, largest=False).indices] == batch.labels.unsqueeze(1)
    return {f"recall@{k}": round(hits[:, :k].any(dim=1).double().mean().item(), 4) for k in (1, 2, 4)}


def train(steps: int, lr: float, weight_decay: float, seed: int) -> ImageModel:
    """The model after the last step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build(**MODEL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    data = emoji.load("train")
    concepts = emoji.read().concepts
    members: dict[str, list[Tensor]] = {}
    # Rows lie style beside style, in the order of the concepts.
    for concept, pair in zip(emoji.read().splits["train"], torch.arange(len(data)).view(-1, 2), strict=True):
        members.setdefault(concepts[concept][3], []).append(pair)
    subgroups = [torch.stack(pairs) for pairs in members.values()]

    started, total = time.monotonic(), 0.0
    for step in range(steps):
        # Warm-up, then a cosine to zero.
        factor = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        rows = batch_rows(subgroups, generator)
        seeds = torch.randint(2**62, rows.shape, generator=generator)
        batch = data.collate(data.items, rows, seeds)
        embeddings = model(batch.views["image"]).embedding
        triples = distance_weighted_triples(embeddings.detach(), batch.labels, generator=generator)
        loss = triplet_loss(embeddings, triples, margin=MARGIN, reduction="mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
        if (step + 1) % 500 == 0 or step + 1 == steps:
            seconds = time.monotonic() - started
            print(
                f"step {step + 1}: loss {total / (step % 500 + 1):.4f}, val {val_recalls(model)}, {seconds:.0f} s",
                flush=True,
            )
            total = 0.0
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=OUT, help="folder for emoji-teacher.safetensors and .json"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)

    model = train(options.steps, options.lr, options.weight_decay, options.seed)
    full = val_recalls(model)
    # Half precision on disk. Counters of batch norm are integers and stay.
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    path = options.out / "emoji-teacher.safetensors"
    save_file(state, path)
    path.chmod(0o644)  # safetensors writes for the owner alone; a wheel keeps the mode
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    description = {
        "command": (
            f"python tools/train_emoji_teacher.py --steps {options.steps} --lr {options.lr} "
            f"--weight-decay {options.weight_decay} --seed {options.seed}"
        ),
        "model": MODEL,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": "float16 on disk, float32 in use",
        "steps": options.steps,
        "batch": SUBGROUPS * CONCEPTS * VIEWS,
        "seed": options.seed,
        "val": val_recalls(model),
        "val_before_rounding": full,
        "train_data_hash": emoji.load("train").hash,
        "val_data_hash": emoji.load("val").hash,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (options.out / "emoji-teacher.json").write_text(
        json.dumps(description, indent=1) + "\n", encoding="utf-8"
    )
    print(json.dumps(description["val"]), f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
