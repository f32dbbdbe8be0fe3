"""Options that several commands have: how and where to train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdzoo.cli import complete

DTYPES = ("float32", "bfloat16")

Jobs = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Train in this many processes at once. Without it, one a core (or a GPU); with 0, in this one.",
    ),
]
DeviceName = Annotated[
    str,
    typer.Option(
        help="Train on 'cpu', 'cuda' or 'cuda:N'; 'auto' takes a GPU if there is one.",
        autocompletion=complete.words("auto", "cpu", "cuda"),
    ),
]
Dtype = Annotated[
    str, typer.Option(help="Compute in 'float32' or 'bfloat16'.", autocompletion=complete.words(*DTYPES))
]
Threads = Annotated[
    int,
    typer.Option(
        min=1, help="Give every process this many threads; results depend on it in the last digits."
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        help="Look for the paper's data sets in this folder; 'kdzoo show TASK' tells how it is laid out."
    ),
]
Smoke = Annotated[
    bool,
    typer.Option(
        "--smoke", help="Take three steps with one seed to see that it runs; the numbers mean nothing."
    ),
]
