"""Train the teacher of the task `emoji-keywords` and write the weights that kdzoo_vision ships.

    python tools/train_keywords_teacher.py

A conv net with an ML-Decoder, trained from scratch by binary cross-entropy on the labels of all training concepts
(splits train and pool), in both styles. The last step counts; val is only looked at and test never opened. One
thread; with the same torch on the same kind of processor it gives the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from kdzoo.label_metrics import average_precision
from kdzoo.losses.multilabel import binary_cross_entropy
from kdzoo_vision.data import emoji, emoji_keywords
from kdzoo_vision.ml_decoder import LabelModel
from kdzoo_vision.models import build, count_parameters

OUT = Path(__file__).parents[1] / "plugins/vision/src/kdzoo_vision/data/files"
WARM_UP = 100  # steps


def make(backbone: str, width: int, hidden: int, heads: int, dropout: float) -> LabelModel:
    """The model, freshly initialised from torch's default generator."""
    body = build(backbone, num_classes=None, in_channels=3, image_size=emoji.SIDE)
    labels = len(emoji_keywords.read().names)
    image = (3, emoji.SIDE, emoji.SIDE)
    return LabelModel(body, labels, image, width=width, hidden=hidden, heads=heads, dropout=dropout)


@torch.no_grad()
def val_map(model: LabelModel) -> dict[str, float]:
    """mAP over all labels, the rare and the common ones of the val split, without augmentation."""
    data, rare = emoji_keywords.load("val"), emoji_keywords.read().rare
    batch = data.collate(data.items, torch.arange(len(data)), None)
    model.eval()
    logits = model(batch.views["image"]).logits
    model.train()
    precision = average_precision(logits, batch.labels)
    known = ~precision.isnan()
    parts = {"map": known, "map[rare]": known & rare, "map[common]": known & ~rare}
    return {name: round(float(precision[part].mean()), 4) for name, part in parts.items()}


def train(model: LabelModel, steps: int, batch: int, lr: float, weight_decay: float, seed: int) -> LabelModel:
    """The model after the last step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    data = emoji_keywords.load("all")
    started, total, order = time.monotonic(), 0.0, torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        # Warm-up, then a cosine to zero.
        factor = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        if len(order) < batch:
            order = torch.randperm(len(data), generator=generator)
        rows, order = order[:batch], order[batch:]
        drawn = data.collate(data.items, rows, torch.randint(2**62, rows.shape, generator=generator))
        loss = binary_cross_entropy(model(drawn.views["image"]).logits, drawn.labels, reduction="mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            seconds = time.monotonic() - started
            mean = total / (step % 250 + 1)
            print(f"step {step + 1}: loss {mean:.4f}, val {val_map(model)}, {seconds:.0f} s", flush=True)
            total = 0.0
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="cnn-l4")
    parser.add_argument("--width", type=int, default=48, help="width of the label-wise embeddings")
    parser.add_argument("--hidden", type=int, default=96, help="width of the decoder's FFN")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for emoji-keywords-teacher.*")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)

    model = make(given.backbone, given.width, given.hidden, given.heads, given.dropout)
    train(model, given.steps, given.batch, given.lr, given.weight_decay, given.seed)
    path = given.out / "emoji-keywords-teacher.safetensors"
    full = val_map(model)
    # Half precision on disk. Counters of batch norm are integers and stay.
    state = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    save_file(state, path)
    path.chmod(0o644)  # safetensors writes for the owner alone; a wheel keeps the mode
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    settings = {name: value for name, value in vars(given).items() if name != "out"}
    description = {
        **settings,
        "command": "python tools/train_keywords_teacher.py"
        + "".join(f" --{name.replace('_', '-')} {value}" for name, value in settings.items()),
        "parameters": count_parameters(model),
        "dtype": "float16 on disk, float32 in use",
        "val": val_map(model),
        "val_before_rounding": full,
        "train_data_hash": emoji_keywords.load("all").hash,
        "val_data_hash": emoji_keywords.load("val").hash,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "licence": "Apache-2.0",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (given.out / "emoji-keywords-teacher.json").write_text(
        json.dumps(description, indent=1) + "\n", encoding="utf-8"
    )
    print(json.dumps(description["val"]), f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
