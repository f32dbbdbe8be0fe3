"""What a method that has triples written asks of its task: heads, relations, wordings, and who says what is true.

A task's module has a function ``knowledge(run)`` that gives it. Triples are those of `kdzoo_llm.triples`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from kdzoo import catalog
from kdzoo.errors import KdzooError
from kdzoo.speakers.speech import Speaker
from kdzoo_llm.triples import Triple

if TYPE_CHECKING:
    from kdzoo.runs import Run


class Knowledge(Protocol):
    """A kind of knowledge as text.

    Attributes:
        relations: all of them.
        closed: whether every triple can be judged, as in a closed world; else what the critic was fitted to does not
            count where the corpus is judged, since little else is.
        plain: a written text as the corpus has it.
    """

    @property
    def relations(self) -> Sequence[str]: ...

    @property
    def closed(self) -> bool: ...

    @property
    def plain(self) -> Callable[[str], str]: ...

    def seeds(self) -> Sequence[str]:
        """Heads of training, from which lists are drawn that the teacher continues."""

    def pool(self) -> Sequence[str]:
        """Heads that may be asked about where the teacher writes none."""

    def asked_of(self, head: str) -> Sequence[str]:
        """The relations in which a head is asked about; none for a head of val or test, which would be learnt before it
        is asked for, and for one of another form."""

    def head_prompt(self, seeds: Sequence[str]) -> str:
        """An open list of heads (C1 of symbolic-kd)."""

    def tail_prompts(self, relation: str, heads: Sequence[str], number: int) -> list[str]:
        """A prompt for each head: a question, `number` worked examples, and the line that is to be completed (C2)."""

    def prompt_of(self, head: str, relation: str) -> str:
        """What the student reads before it writes a tail (C5)."""

    def ways(self, triple: Triple, most: int) -> list[tuple[str, str]]:
        """The pair that the critic reads, in at most `most` wordings of equal meaning."""

    def judged(self, corpus: Sequence[Triple], number: int) -> dict[str, list[Triple]]:
        """At most `number` triples that people have judged, in the parts train, val and test, of different heads."""

    def truth(self, triple: Triple) -> bool | None:
        """Whether people take a triple for true; None where nobody was asked."""

    def speaker(self) -> Speaker:
        """The scripted teacher."""


def knowledge_of(run: Run) -> Knowledge:
    """The knowledge of a run's task.

    Raises:
        KdzooError: the task has none.
    """
    module = catalog.load().module(run.spec.task)
    if not hasattr(module, "knowledge"):
        raise KdzooError(
            f"the task {run.spec.task!r} has no function 'knowledge': there are no heads and relations that a teacher "
            "could be asked about. Choose a task of kind 'knowledge models', such as word-relations."
        )
    found: Knowledge = module.knowledge(run)
    return found
