"""The command line. Each command is a file of its own, imported when it is called (or its help line is printed).

Nothing here may import torch or numpy: ``kdzoo --help`` and ``kdzoo list`` must start at once.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any


import typer
from typer.core import TyperGroup

from kdzoo import plugins as loading
from kdzoo.errors import KdzooError, did_you_mean


class LazyGroup(TyperGroup):
    """Commands by name from the plugins' `commands` hook; a command's module is imported when it is needed."""

    def targets(self) -> dict[str, str]:
        return loading.merged(loading.load().hook.commands()[::-1], "command")

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.targets())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        target = self.targets().get(cmd_name)
        if target is None:
            return None
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name)(loading.resolve(target))
        return typer.main.get_command(single)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.targets():
            near = did_you_mean(args[0], self.targets())
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise KdzooError(f"unknown command {args[0]!r}.{hint} 'kdzoo --help' lists the commands.")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=LazyGroup,
    name="kdzoo",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Run, compare and lend out knowledge-distillation methods.",
)


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Run, compare and lend out knowledge-distillation methods."""
    if version:
        from kdzoo.cli.version import version as print_version

        print_version()
        raise typer.Exit


def main() -> None:
    """The ``kdzoo`` program: a user's mistake is one message and exit code 2, never a traceback."""
    try:
        app()
    except KdzooError as error:
        print(f"kdzoo: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        sys.stderr.close()
        raise SystemExit(141) from None
