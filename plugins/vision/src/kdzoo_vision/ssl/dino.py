"""Self-distillation without labels (DINO): students see all crops, teachers are averages and see the large ones.

The pieces that the task's loss and a method's losses share; `kdzoo_vision.ssl.hooks` puts them on the hooks.

Shapes: B images, V = 2 + L crops, K outputs. Roles: ``cnn``, ``vit`` backbones, ``cnn-head`` the MLP head of one;
``-ema`` at the end of a name: the moving average of that role.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdzoo.losses.multicrop import dino_loss, moved_center
from kdzoo.method import Term
from kdzoo_vision.ssl.schedules import cosine, linear

if TYPE_CHECKING:
    from kdzoo.runs import Run

MODELS = ("cnn", "vit")
LARGE, SMALL = "large", "small"  # views of a batch
EMA = "-ema"


class Centres:
    """The moving mean of each head's teacher logits, and what the current step adds to it.

    One centre for each output of a teacher. The official code has one for each loss; two losses that read one output
    keep equal centres there, since each starts at zero and sees the same logits.
    """

    def __init__(self, outputs: int, device: torch.device) -> None:
        self.outputs, self.device = outputs, device
        self.centres: dict[str, Tensor] = {}
        self.pending: dict[str, tuple[Tensor, int]] = {}

    def at(self, name: str) -> Tensor:
        """(K,), as it was when the step began."""
        if name not in self.centres:
            self.centres[name] = torch.zeros(self.outputs, device=self.device)
        return self.centres[name]

    def observe(self, name: str, logits: Tensor) -> None:
        """Count a micro-batch's teacher logits, (n, K)."""
        total, count = self.pending.get(name, (torch.zeros_like(self.at(name)), 0))
        self.pending[name] = total + logits.detach().to(total.dtype).sum(0), count + len(logits)

    def close(self, run: Run, momentum: float) -> None:
        """Move the centres by what the step has seen, on all ranks together."""
        for name, (total, count) in self.pending.items():
            if run.device_info.ranks > 1:
                torch.distributed.all_reduce(total)
            self.centres[name] = moved_center(
                self.centres[name], total, count * run.device_info.ranks, momentum
            )
        self.pending.clear()

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.centres)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.centres = {name: value.to(self.device) for name, value in state.items()}


def centres(run: Run) -> Centres:
    """The run's centres, in its checkpoint."""
    if "centres" not in run.kept:
        run.keep("centres", Centres(int(run.cfg.outputs), run.device))
    found: Centres = run.kept["centres"]
    return found


def student_mlp(run: Run, model: str) -> Tensor:
    """The student's MLP head on all crops, large and small apart, as batch norm wants them: (V B, K)."""
    head = run.models[f"{model}-head"]
    return torch.cat([head(run.out(model, view).embedding) for view in (LARGE, SMALL)])


@torch.no_grad()
def teacher_mlp(run: Run, model: str) -> Tensor:
    """The teacher's MLP head on the large crops, (2 B, K); it counts for the centre of the next step."""
    logits = answer(run, f"{model}-head{EMA}", run.signal(f"{model}{EMA}", LARGE).embedding)
    centres(run).observe(f"{model}-head", logits)
    return logits


@torch.no_grad()
def answer(run: Run, role: str, *given: Any) -> Any:
    """What an average says, in its student's mode: in training batch norm takes the batch's statistics in both."""
    average = run.models[role]
    average.train(run.models[role.removesuffix(EMA)].training)
    try:
        return average(*given)
    finally:
        average.eval()


def self_distillation(run: Run, student: Tensor, teacher: Tensor, centre: str, temperature: float) -> Tensor:
    """`dino_loss` with the run's settings, summed over the B images (nats)."""
    known = centres(run).at(centre)
    return dino_loss(
        student,
        teacher,
        known if run.cfg.centring else torch.zeros_like(known),
        crops=2 + int(run.cfg.small_crops),
        student_temperature=float(run.cfg.student_temperature),
        teacher_temperature=temperature,
        reduction="sum",
    )


def teacher_temperature(run: Run, model: str) -> float:
    """Of this step, for what teaches `model`: rising, for ``cnn`` over another share of the run than for ``vit``."""
    warmup = float(run.cfg[f"{model}_temperature_warmup"]) * run.steps
    return linear(float(run.cfg.first_temperature), float(run.cfg.teacher_temperature), run.step, warmup)


def independent_terms(run: Run) -> dict[str, Any]:
    """Each model by itself: its MLP head against its own average's."""
    total = sum(
        self_distillation(
            run, student_mlp(run, m), teacher_mlp(run, m), f"{m}-head", teacher_temperature(run, m)
        )
        for m in MODELS
    )
    assert isinstance(total, Tensor)
    return {"task": Term(total, per="item")}


@torch.no_grad()
def move_averages(run: Run) -> None:
    """theta-bar <- m theta-bar + (1 - m) theta for every averaged role; buffers (batch statistics) are its own.

    m follows half a cosine from `teacher_momentum` to 1. Source: Grill et al. 2020, arXiv 2006.07733, equation 1;
    skyoux/mokd@f7b1386 main_mokd.py.
    """
    momentum = cosine(float(run.cfg.teacher_momentum), 1.0, run.step, run.steps) if run.cfg.averaging else 0.0
    averages: list[Tensor] = []
    weights: list[Tensor] = []
    for name in run.roles:
        if name.endswith(EMA):
            averages += list(run.models[name].parameters())
            weights += list(run.models[name.removesuffix(EMA)].parameters())
    torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 1.0 - momentum)
