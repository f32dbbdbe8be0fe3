"""Who writes for a stage: the task's own teacher here, or any model behind an endpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kdzoo import roles
from kdzoo.errors import KdzooError
from kdzoo.speakers.speech import Speaker
from kdzoo_llm.language import context
from kdzoo_llm.local_speaker import LocalSpeaker
from kdzoo_llm.models import LanguageModel, build
from kdzoo_llm.vocabularies import open_vocabulary

if TYPE_CHECKING:
    from kdzoo.runs import Run


def speaker_of(run: Run, batch: int = 64) -> Speaker:
    """The teacher, speaking: an endpoint where the settings name one (``endpoint.base_url``), else `local_speaker`."""
    return _endpoint(run) if run.cfg.get("endpoint.base_url", "") else local_speaker(run, batch)


def _endpoint(run: Run) -> Speaker:
    """The model behind the endpoint that the settings name; httpx is imported only where one is asked."""
    from kdzoo.speakers.endpoint import EndpointSpeaker
    from kdzoo.speakers.settings import Endpoint

    return EndpointSpeaker(Endpoint.of(run.cfg))


def chosen_speaker(run: Run, scripted: Callable[[], Speaker]) -> Speaker:
    """The teacher by the setting `speaker`: the task's program, a model behind an endpoint, or one that runs here.

    Raises:
        KdzooError: a local teacher without `speaker_model`; an endpoint that is not named.
    """
    cfg = run.cfg
    if cfg.speaker == "endpoint":
        return _endpoint(run)
    if cfg.speaker == "scripted":
        return scripted()
    if not cfg.speaker_model:
        raise KdzooError(
            "speaker = 'local', and no speaker_model: there is nobody to write. Give the folder of a downloaded "
            "model, or its name on the Hugging Face hub."
        )
    name, held = str(cfg.speaker_model), int(cfg.speaker_context)
    vocabulary = open_vocabulary(str(cfg.speaker_vocabulary) or name)
    model = build(name, vocabulary, context=held, pretrained=True)
    return LocalSpeaker(model.to(run.device), context=held)


def local_speaker(run: Run, batch: int = 64) -> LocalSpeaker:
    """The model of the role "teacher", speaking.

    The stage must have the role, with the source of its weights, and read the settings that build it.
    """
    if "teacher" not in run.models:
        roles.build(run)
    model = run.models["teacher"]
    assert isinstance(model, LanguageModel)
    return LocalSpeaker(model, context=context(run.cfg), batch=batch)
