"""A report as one HTML file: everything inside, nothing fetched, nothing that is not escaped.

The page's content security policy names its style sheet and its script by hash and forbids everything else, so that
a name from somebody's card that slipped through unescaped could still run nothing.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kdzoo.artefacts import write_atomic
from kdzoo.records import Record
from kdzoo.report.stage_view import StageView
from kdzoo.report.view import BenchView, bench_view

HERE = Path(__file__).parent


def environment() -> Environment:
    """Templates with escaping on, whatever their names, and an error for a name that does not exist."""
    return Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def bench_page(record: Record, stored: dict[str, Any] | None = None) -> str:
    """The page of a bench; see `bench_view`."""
    return _render("bench.html", bench_view(record, stored))


def stage_page(view: StageView) -> str:
    """The page of one stage."""
    return _render("stage.html", view)


def _render(template: str, view: BenchView | StageView) -> str:
    style = (HERE / "style.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    # Both are ours, and hold no end tag: they go in as they are, since escaping would change what they say.
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        environment()
        .get_template(template)
        .render(
            # the fields themselves: dataclasses.asdict would turn the parts into dictionaries and lose their properties
            **{field.name: getattr(view, field.name) for field in fields(view)},
            style=Markup(style),
            script=Markup(script),
            policy=policy,
            version=metadata.version("kdzoo"),
        )
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def write(page: str, path: Path) -> None:
    """Write the file whole or not at all; its folder is made."""
    write_atomic(path, page.encode())
