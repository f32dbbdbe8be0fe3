"""Where a run computes: device, precision, threads, ranks. accelerate prepares all that is not one CPU process."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdzoo.errors import KdzooError

_NOTHING = nullcontext()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(slots=True)
class Device:
    """The device of this process and its place among the ranks.

    One CPU process goes without accelerate: its per-step wrappers cost more than a small model's step.
    """

    torch: torch.device
    dtype: str = "float32"
    rank: int = 0
    ranks: int = 1
    accelerator: Any = None

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 needs no loss scaling; float32 needs no context."""
        if self.dtype == "float32":
            return _NOTHING
        return torch.autocast(self.torch.type, dtype=DTYPES[self.dtype])

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as accelerate prepares it (DDP, FSDP as launched); unchanged in one CPU process."""
        return module if self.accelerator is None else self.accelerator.prepare_model(module)

    def total(self, value: float) -> float:
        """The sum of a value over all ranks; every rank must ask."""
        if self.ranks == 1:
            return value
        whole = torch.tensor(value, dtype=torch.float64, device=self.torch)
        torch.distributed.all_reduce(whole)
        return whole.item()

    def share(self, value: Any) -> Any:
        """What rank 0 has, on every rank; every rank must ask, and those that ask early wait."""
        if self.ranks == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.torch)
        return box[0]

    @property
    def main(self) -> bool:
        return self.rank == 0


def launched_ranks() -> int:
    """Processes that torchrun or ``accelerate launch`` has started for this run; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def open_device(name: str, dtype: str) -> Device:
    """The device called `name` (``cpu``, ``cuda``, ``cuda:1``), under torchrun or ``accelerate launch`` too."""
    if dtype not in DTYPES:
        raise KdzooError(f"--dtype got {dtype!r}, expected one of {', '.join(DTYPES)}")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise KdzooError(
            f"--device {name}: this torch sees no GPU. Use --device cpu, or install a CUDA build of torch."
        )
    ranks = launched_ranks()
    if ranks == 1 and device.type == "cpu":
        return Device(device, dtype)
    from accelerate import Accelerator, DistributedDataParallelKwargs

    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if dtype == "bfloat16" else "no",
        # A hint stage trains half of a student: DDP would wait for the gradients of the other half.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if device.type == "cuda" and ranks == 1:
        place = device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
        return Device(place, dtype, accelerator=accelerator)
    return Device(
        accelerator.device, dtype, accelerator.process_index, accelerator.num_processes, accelerator
    )
