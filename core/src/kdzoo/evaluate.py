"""The last stage: open the test split once and measure. Core adds what needs only logits and a teacher."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdzoo import roles
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.runs import Predicted, Run, as_output

if TYPE_CHECKING:
    from kdzoo.method import Batch


def evaluate_stage(run: Run) -> None:
    """Build what ships (and the task's teacher), measure on `test`, size the models."""
    roles.build(run)
    for module in run.models.values():
        module.eval()
    run.split_open.add("test")
    run.evaluating = True
    with torch.no_grad():
        for part in run.hook.evaluate(run=run, split="test"):
            for name, metric in part.items():
                full = name if "/" in name else f"test/{name}"
                if full in run.metrics:
                    raise KdzooError(f"two plugins give the metric {full!r}: rename one of them")
                run.metrics[full] = metric
    run.facts["ships"] = {role: _size(run, role) for role in run.ships}


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """Core's part: fidelity to the teacher and calibration, where there are logits; not during training."""
    if run.stage != "evaluate":
        return {}
    from kdzoo import metrics

    found: dict[str, Metric] = {}
    taught = None
    for role, suffix in run.shipped():
        if not _answers_by_sample(run, role, split):
            continue
        said = run.predict(role, split)
        assert said.logits is not None
        if taught is None and "teacher" in run.models and _answers_by_sample(run, "teacher", split):
            taught = run.predict("teacher", split)
        if isinstance(said.labels, Tensor) and said.labels.dim() == 1:
            calibration = metrics.expected_calibration_error(said.logits, said.labels, axis=1, bins=15)
            found[f"ece{suffix}"] = Metric(float(calibration), len(said.ids))
        if taught is not None and taught.logits is not None and taught.logits.shape == said.logits.shape:
            agree = metrics.agreement(said.logits, taught.logits, axis=1, reduction="none")
            found[f"agreement{suffix}"] = Metric(float(agree.mean()), len(said.ids), agree)
            apart = metrics.predictive_kl(said.logits, taught.logits, axis=1, reduction="none")
            found[f"teacher_kl{suffix}"] = Metric(float(apart.mean()), len(said.ids), apart)
    return found


def _answers_by_sample(run: Run, role: str, split: str) -> bool:
    """Whether a model gives logits (N, C). Others, such as maps over large images, are the task's to measure: all of
    them at once would not fit into memory."""
    data = run.data(split)
    one: Batch = run.to_device(data.collate(data.items, torch.arange(1), None))
    with torch.no_grad(), run.device_info.autocast():
        logits = as_output(run.models[role](one.views[run.view_of(role)])).logits
    return logits is not None and logits.dim() == 2


def predict(run: Run, role: str, split: str, view: str, batch: int) -> Predicted:
    """See `Run.predict`. Kept for the whole stage for a frozen role, and in a stage that trains nothing."""
    lasting = run.roles[role].kind == "frozen" or run.stage == "evaluate"
    if lasting and (role, split, view) in run.predicted:
        return run.predicted[(role, split, view)]
    data, module = run.data(split), run.models[role]
    logits, embeddings, labels = [], [], []
    for first in range(0, len(data), batch):
        rows = torch.arange(first, min(first + batch, len(data)))
        part: Batch = run.to_device(data.collate(data.items, rows, None))
        with torch.no_grad(), run.device_info.autocast():
            output = as_output(module(part.views[view]))
        if output.logits is not None:
            logits.append(output.logits.float().cpu())
        if output.embedding is not None:
            embeddings.append(output.embedding.float().cpu())
        labels.append(part.labels.cpu() if isinstance(part.labels, Tensor) else part.labels)
    predicted = Predicted(
        torch.cat(logits) if logits else None,
        torch.cat(embeddings) if embeddings else None,
        torch.cat(labels) if labels and isinstance(labels[0], Tensor) else labels,
        list(data.ids),
    )
    if lasting:
        run.predicted[(role, split, view)] = predicted
    return predicted


def _one(run: Run, role: str) -> Tensor | dict[str, Tensor]:
    """One sample, as a model takes it: of the validation split, or of the training split where there is none."""
    split = "val" if "val" in run.task.splits and len(run.data("val")) else "train"
    data = run.data(split)
    value: Tensor | dict[str, Tensor] = run.to_device(data.collate(data.items, torch.arange(1), None)).views[
        run.view_of(role)
    ]
    return value


def _size(run: Run, role: str) -> dict[str, float | str]:
    """Parameters, floating-point operations of one sample (multiply and add counted apart), hash of the weights."""
    from torch.utils.flop_counter import FlopCounterMode

    module = run.models[role]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(_one(run, role))
    return {
        "params": sum(parameter.numel() for parameter in module.parameters()),
        "flops": counter.get_total_flops(),
        "sha256": roles.state_hash(module),
    }


def latency_ms(module: nn.Module, value: Tensor | dict[str, Tensor], seconds: float = 0.3) -> float:
    """Median milliseconds of one forward pass of one sample, after a warm-up; to be called alone on the machine."""
    module.eval()
    cuda = next(module.parameters()).is_cuda
    times: list[float] = []
    with torch.no_grad():
        for _ in range(5):
            module(value)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 5:
            began = time.perf_counter()
            module(value)
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2] * 1000


def latency_stage(run: Run) -> dict[str, float]:
    """Milliseconds of every role that ships; a measurement of this machine, so never an artefact."""
    roles.build(run)
    return {role: latency_ms(run.models[role], _one(run, role)) for role in run.ships}
