"""``kdzoo pictures``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdzoo.cli import complete
from kdzoo.cli.options import DataRoot, DeviceName


def pictures(
    method: Annotated[
        str,
        typer.Argument(help="A segmentation method.", autocompletion=complete.methods, show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Write this PNG file.")] = Path("pictures.png"),
    task: Annotated[str | None, typer.Option(help="Take this task instead of the method's default.")] = None,
    profile: Annotated[str, typer.Option(help="Take the default task of 'local' or 'paper'.")] = "local",
    arms: Annotated[
        str, typer.Option(help="Show these arms, by commas; teacher and student come first.")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Show the nets of this seed.")] = 0,
    images: Annotated[int, typer.Option(min=1, max=16, help="Show this many images.")] = 3,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, as the bench was given.", show_default=False)
    ] = None,
    device: DeviceName = "auto",
    data_root: DataRoot = None,
) -> None:
    """Draw what the nets of a finished bench see: image, truth, every arm's classes and its errors.

    Images are of the validation split; nothing is trained. Run 'kdzoo bench METHOD' with the same settings before.
    """
    from kdzoo.cli.bench import usable_device
    from kdzoo.plan import Request
    from kdzoo_segmentation.pictures import draw

    request = Request(
        method,
        task=task,
        profile=profile,
        arms=arms or method,
        seeds=1,
        first_seed=seed,
        set=tuple(set_ or ()),
        device=usable_device(device),
        data_root=str(data_root) if data_root else None,
    )
    size = draw(request, out, images)
    typer.echo(f"{out}: {size[0]} x {size[1]} pixels")
