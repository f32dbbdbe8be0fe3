"""The command line. Each command is a file of its own, imported when it is called (or its help line is printed).

Nothing here may import torch or numpy: ``kdzoo --help`` and ``kdzoo list`` must start at once.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from kdzoo import plugins as loading
from kdzoo.cli.values import lighten
from kdzoo.errors import KdzooError, did_you_mean

# Typer brings its own copy of click, or imports click, by version: its usage errors are known by this base class.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class LightCommand(TyperCommand):
    """A command whose values are converted without pydantic."""

    def get_params(self, ctx: Any) -> list[Any]:
        return lighten(super().get_params(ctx))


class LazyGroup(TyperGroup):
    """Commands by name from the plugins' `commands` hook; a command's module is imported when it is needed."""

    _targets: dict[str, str] | None = None

    def targets(self) -> dict[str, str]:
        if self._targets is None:
            self._targets = loading.load().targets("commands")
        return self._targets

    def get_params(self, ctx: Any) -> list[Any]:
        return lighten(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.targets())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        target = self.targets().get(cmd_name)
        if target is None:
            return None
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        try:
            function = loading.resolve(target)
            single.command(cmd_name, cls=LightCommand)(function)
            return typer.main.get_command(single)
        except Exception as error:  # one plugin's broken command must not take help and the others with it
            return _broken(cmd_name, target, error)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.targets():
            near = did_you_mean(args[0], self.targets())
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise KdzooError(f"unknown command {args[0]!r}.{hint} 'kdzoo --help' lists the commands.")
        return super().resolve_command(ctx, args)


def _broken(name: str, target: str, error: Exception) -> Any:
    """A command in the place of one that cannot be loaded: whatever it is called with, it says why."""
    said = str(error) if isinstance(error, KdzooError) else f"{target}: {type(error).__name__}: {error}"

    def command(context: typer.Context) -> None:
        raise KdzooError(f"the command {name!r} cannot be used: {said}")

    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    takes_all = {"ignore_unknown_options": True, "allow_extra_args": True}
    single.command(name, help=f"BROKEN: {said}", context_settings=takes_all)(command)
    return typer.main.get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    name="kdzoo",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Run, compare and lend out knowledge-distillation methods.",
)


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Run, compare and lend out knowledge-distillation methods."""
    if version:
        from kdzoo.cli.version import version as print_version

        print_version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """The ``kdzoo`` program: a user's mistake is one message and exit code 2, never a traceback."""
    try:
        code = app(prog_name="kdzoo", standalone_mode=False)
        sys.stdout.flush()
    except KdzooError as error:
        print(f"kdzoo: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except UsageError as error:
        print(f"kdzoo: {_usage(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        sys.stderr.close()
        raise SystemExit(141) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def _usage(error: Any) -> str:
    """What is wrong with the words on the command line, and where to read what is right."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "kdzoo"
    said = error.format_message()
    if context is not None and (given := getattr(error, "option_name", None)):
        known = [
            name for param in context.command.get_params(context) for name in param.opts if name[:1] == "-"
        ]
        near = did_you_mean(given, known)
        said = f"unknown option {given!r}." + (f" Did you mean {', '.join(near)}?" if near else "")
    elif said:
        said = said[0].lower() + said[1:]
    return f"{said.rstrip('.')}{'' if said.endswith('?') else '.'} '{path} --help' says what it takes."
