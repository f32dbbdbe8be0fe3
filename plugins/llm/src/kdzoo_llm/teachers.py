"""Who writes for a stage: the task's own teacher here, or any model behind an endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo import roles
from kdzoo.speakers.speech import Speaker
from kdzoo_llm.language import context
from kdzoo_llm.local_speaker import LocalSpeaker
from kdzoo_llm.models import LanguageModel

if TYPE_CHECKING:
    from kdzoo.runs import Run


def speaker_of(run: Run, batch: int = 64) -> Speaker:
    """The teacher, speaking: an endpoint where the settings name one (``endpoint.base_url``), else `local_speaker`."""
    if run.cfg.get("endpoint.base_url", ""):
        from kdzoo.speakers.endpoint import EndpointSpeaker
        from kdzoo.speakers.settings import Endpoint

        return EndpointSpeaker(Endpoint.of(run.cfg))
    return local_speaker(run, batch)


def local_speaker(run: Run, batch: int = 64) -> LocalSpeaker:
    """The model of the role "teacher", speaking.

    The stage must have the role, with the source of its weights, and read the settings that build it.
    """
    if "teacher" not in run.models:
        roles.build(run)
    model = run.models["teacher"]
    assert isinstance(model, LanguageModel)
    return LocalSpeaker(model, context=context(run.cfg), batch=batch)
