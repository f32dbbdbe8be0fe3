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


def speaker_of(run: Run, role: str = "teacher", batch: int = 64) -> Speaker:
    """The speaker of a role: an endpoint where the settings name one (``endpoint.base_url``), else the role's model.

    The stage must have the role, with the source of its weights, and read the settings that build it.
    """
    if run.cfg.get("endpoint.base_url", ""):
        from kdzoo.speakers.endpoint import EndpointSpeaker
        from kdzoo.speakers.settings import Endpoint

        return EndpointSpeaker(Endpoint.of(run.cfg))
    if role not in run.models:
        roles.build(run)
    model = run.models[role]
    assert isinstance(model, LanguageModel)
    return LocalSpeaker(model, context=context(run.cfg), batch=batch)
