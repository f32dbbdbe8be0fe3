"""What the shell may offer when Tab is pressed: names from the cards, no torch. A failure offers nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from kdzoo.cards import MethodCard
    from kdzoo.catalog import Catalog


def _quiet(offer: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """A broken card or plugin is for the command to complain about; a shell would print it amid what is typed."""

    @wraps(offer)
    def guarded(*args: Any, **kwargs: Any) -> list[Any]:
        try:
            return offer(*args, **kwargs)
        except Exception:
            return []

    return guarded


def _method(ctx: typer.Context, found: Catalog) -> MethodCard | None:
    """The method that is already on the line; an option without its value leaves it among the unread words."""
    words = [str(ctx.params.get("method")), *ctx.args]
    return next((found.methods[word] for word in words if word in found.methods), None)


@_quiet
def methods(incomplete: str) -> list[tuple[str, str]]:
    """Slugs of methods, with their titles."""
    from kdzoo import catalog

    return [(slug, card.title) for slug, card in sorted(catalog.load().methods.items())]


@_quiet
def cards(incomplete: str) -> list[tuple[str, str]]:
    """Slugs of methods and tasks, with their titles."""
    from kdzoo import catalog

    found = catalog.load()
    methods = [(slug, card.title) for slug, card in sorted(found.methods.items())]
    return methods + [(slug, card.title) for slug, card in sorted(found.tasks.items())]


@_quiet
def tasks(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The tasks of the method on the command line; all tasks where none is."""
    from kdzoo import catalog

    found = catalog.load()
    method = _method(ctx, found)
    slugs = sorted(found.tasks) if method is None else list(method.tasks)
    return [(slug, found.tasks[slug].title) for slug in slugs if slug in found.tasks]


@_quiet
def all_tasks(incomplete: str) -> list[tuple[str, str]]:
    """Slugs of tasks, with their titles."""
    from kdzoo import catalog

    return [(slug, card.title) for slug, card in sorted(catalog.load().tasks.items())]


@_quiet
def arms(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The last part of a list of arms: those of the method on its task, that are not in the list yet."""
    from kdzoo import catalog
    from kdzoo.arms import arms_of

    found = catalog.load()
    method = _method(ctx, found)
    if method is None:
        return []
    profile = ctx.params.get("profile") or "local"
    chosen = ctx.params.get("task") or next(
        n for n, use in method.tasks.items() if use.profile == profile and use.default
    )
    before, comma, _ = incomplete.rpartition(",")
    offers = {"default": "the plain bench", "all": "every arm"} if not comma else {}
    offers |= {name: arm.text for name, arm in arms_of(found, method, found.task(str(chosen))).items()}
    return [
        (f"{before}{comma}{name}", text) for name, text in offers.items() if name not in before.split(",")
    ]


@_quiet
def settings(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """``NAME=`` of the settings of the method and its tasks."""
    from kdzoo import catalog

    found = catalog.load()
    method = _method(ctx, found)
    if method is None:
        return []
    params = dict(method.params)
    for slug in [ctx.params.get("task")] if ctx.params.get("task") else method.tasks:
        params |= found.tasks[slug].params if slug in found.tasks else {}
    return [(f"{name}=", param.text) for name, param in sorted(params.items())]


@_quiet
def extensions(incomplete: str) -> list[str]:
    """Names that ``--with`` takes."""
    from kdzoo import plugins

    return sorted(plugins.extensions())


@_quiet
def plugins(incomplete: str) -> list[str]:
    """Names of installed plugins that may bring methods."""
    from kdzoo import plugins as loading

    return [name for name in loading.load().found if name != "core"]


def facet(name: str) -> Callable[[str], list[str]]:
    """Values of one facet over all methods."""

    def values(incomplete: str) -> list[str]:
        from kdzoo import catalog

        found = catalog.load()
        return sorted(
            {value for card in found.methods.values() for value in catalog.facet_values(card, name)}
        )

    return _quiet(values)


def words(*known: str) -> Callable[[str], list[str]]:
    """A fixed list."""

    def values(incomplete: str) -> list[str]:
        return list(known)

    return values
