"""Train the teacher that ships for `fashion-few-labels`, on all 60,000 images of the training part.

    apt-get download dataset-fashion-mnist
    python tools/train_fashion_teacher.py --source dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb

One thread. Cross-entropy on hard labels: label smoothing would take from the wrong classes' probabilities
what a student could learn from them (Mueller, Kornblith, Hinton 2019, arXiv:1906.02629). The last epoch
counts; no epoch is chosen on validation data, and test data are not opened. Writes
fashion-teacher.safetensors (float32) and fashion-teacher.json beside the data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from build_fashion import FILES, read_source
from safetensors.torch import save
from torch.nn import functional as F

from kdzoo.task import Data
from kdzoo_vision.data.fashion import as_data, load
from kdzoo_vision.models import build, count_parameters


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--model", default="cnn-deep")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FILES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    started = time.perf_counter()

    images, labels = read_source(args.source)["train"]
    manifest = json.loads((FILES / "fashion-manifest.json").read_text())
    train = as_data(
        "official-train",
        torch.tensor(images),
        torch.tensor(labels, dtype=torch.int64),
        manifest["mean"],
        manifest["std"],
    )
    val = load("val")
    model = build(args.model, num_classes=10, in_channels=1, image_size=28)
    optimizer = torch.optim.SGD(
        model.parameters(), args.lr, momentum=0.9, nesterov=True, weight_decay=args.weight_decay
    )
    per_epoch = len(train) // args.batch
    steps = args.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.15)
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        order = torch.randperm(len(train))
        for step in range(per_epoch):
            rows = order[step * args.batch : (step + 1) * args.batch]
            batch = train.collate(train.items, rows, torch.randint(2**62, (len(rows),)))
            loss = F.cross_entropy(model(batch.views["image"]).logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        accuracy = measure(model, val)
        seconds = time.perf_counter() - started
        print(
            f"epoch {epoch + 1}: loss {total / per_epoch:.4f}, val {accuracy:.4f}, {seconds:.0f} s",
            flush=True,
        )

    weights = save({name: value.contiguous() for name, value in model.state_dict().items()})
    (args.out / "fashion-teacher.safetensors").write_bytes(weights)
    settings = {key: value for key, value in vars(args).items() if key not in ("source", "out")}
    info = {
        **settings,
        "command": "python tools/train_fashion_teacher.py --source DEB"
        + "".join(f" --{k.replace('_', '-')} {v}" for k, v in settings.items()),
        "data": f"Fashion-MNIST, all {len(train):,} images of the official training part",
        "data_sha256": train.hash,
        "optimizer": "SGD, Nesterov momentum 0.9, one cycle (15 % warm-up, cosine)",
        "augmentation": "shift by -2 to 2 pixels, mirror image",
        "steps": steps,
        "parameters": count_parameters(model),
        "val_accuracy": accuracy,
        "val_sha256": val.hash,
        "seconds": round(time.perf_counter() - started),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "licence": "Apache-2.0",
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    (args.out / "fashion-teacher.json").write_text(json.dumps(info, indent=1) + "\n")


@torch.no_grad()
def measure(model: torch.nn.Module, data: Data) -> float:
    """Accuracy without augmentation."""
    model.eval()
    batch = data.collate(data.items, torch.arange(len(data)), None)
    hits = [
        (model(x).logits.argmax(1) == y).float().sum()
        for x, y in zip(batch.views["image"].split(500), batch.labels.split(500), strict=True)
    ]
    return float(sum(hits)) / len(data)


if __name__ == "__main__":
    main()
