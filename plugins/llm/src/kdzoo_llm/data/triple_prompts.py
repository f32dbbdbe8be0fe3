"""The prompt from which students write a tail: head and relation between marks, as the official code of symbolic
knowledge distillation has it (peterwestai2/symbolic-knowledge-distillation@7fa8cbf generate_COMET_distill.ipynb)."""

from __future__ import annotations

from kdzoo.errors import KdzooError


def prompt_of(head: str, relation: str) -> str:
    """What a student reads before it writes a tail."""
    return f"<head> {head} </head> <relation> {relation} </relation> [GEN]"


def asked(prompt: str) -> tuple[str, str]:
    """Head and relation of a prompt of `prompt_of`.

    Raises:
        KdzooError: it is none.
    """
    head, found, rest = prompt.removeprefix("<head> ").partition(" </head> <relation> ")
    relation = rest.removesuffix(" </relation> [GEN]")
    if not found or relation == rest:
        raise KdzooError(
            f"{prompt!r} is no prompt of kdzoo_llm.data.triple_prompts: which head and relation it asks for cannot be "
            "said. Make prompts with prompt_of."
        )
    return head, relation
