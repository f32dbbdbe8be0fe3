"""Prompts as a model's own token ids: written as in training, checked against its tokenizer and its chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from kdzoo.errors import KdzooError
from kdzoo.speakers.speech import Message, Prompt, Tokens
from kdzoo_llm.fingerprints import vocabulary_hash
from kdzoo_llm.sequences import written

Encode = Callable[[str], list[int]]


def require_vocabulary(tokenizer: PreTrainedTokenizerFast, given: str, what: str, whose: str) -> None:
    """Refuse ids of another vocabulary.

    Args:
        tokenizer: whose ids are expected.
        given: `vocabulary_hash` of what the ids are of.
        what: that has these ids, for the message.
        whose: model's name, for the message.

    Raises:
        KdzooError: with both hashes.
    """
    own = vocabulary_hash(tokenizer)
    if given != own:
        raise KdzooError(
            f"{what} has ids of the vocabulary {given[:16]}..., and {whose} reads {own[:16]}... "
            f"({len(tokenizer):,} tokens): it would read other words, and answer them. Give it the text, or ids from "
            "its own tokenizer."
        )


def plain(tokenizer: PreTrainedTokenizerFast) -> Encode:
    """Text as a tokenizer itself encodes it, for models that continue text: its own special tokens, but no end."""

    def encode(text: str) -> list[int]:
        ids = list(tokenizer.encode(text))
        if ids and ids[-1] == tokenizer.eos_token_id and len(ids) > 1:
            ids.pop()  # after an end there is nothing to continue
        return ids

    return encode


class Prompts:
    """Turns what is asked into ids.

    Args:
        tokenizer: of the model.
        whose: the model's name, for messages.
        encode: text -> ids; None: as `kdzoo_llm.sequences.written` does in training, which is a user's turn where the
            tokenizer has a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, whose: str, encode: Encode | None = None) -> None:
        self.tokenizer, self.whose = tokenizer, whose
        self._encode = encode
        self._checked: set[tuple[str, ...]] = set()

    def ids(self, prompt: Prompt, name: str) -> list[int]:
        """Ids of the prompt of request `name`.

        Raises:
            KdzooError: ids of another vocabulary, or a conversation that the chat template cannot write.
        """
        if isinstance(prompt, Tokens):
            require_vocabulary(self.tokenizer, prompt.vocabulary, f"request {name!r}", self.whose)
            ids, size = list(prompt.ids), len(self.tokenizer)
            if ids and not 0 <= min(ids) <= max(ids) < size:
                raise KdzooError(
                    f"request {name!r} has the id {max(ids) if min(ids) >= 0 else min(ids)}, and the vocabulary of "
                    f"{self.whose} ends at {size - 1}: there is no such token."
                )
        elif isinstance(prompt, tuple):
            ids = self._conversation(prompt, name)
        elif self._encode is not None:
            ids = self._encode(prompt)
        else:
            if self.tokenizer.chat_template:
                self._check(("user",), name)
            ids = written(self.tokenizer, [prompt], [""])[0][0]
        if not ids:
            raise KdzooError(
                f"request {name!r}: the prompt has no token, and {self.whose} has none that begins a text: there is "
                "nothing to continue. Give a prompt that is not empty."
            )
        return ids

    def _conversation(self, turns: Sequence[Message], name: str) -> list[int]:
        self._check(tuple(turn.role for turn in turns), name)
        said = _rendered(
            self.tokenizer, [(turn.role, turn.content) for turn in turns], self.whose, name, True
        )
        return list(said)

    def _check(self, roles: tuple[str, ...], name: str) -> None:
        """The template, once for each sequence of roles."""
        if roles not in self._checked:
            check_template(self.tokenizer, roles, self.whose, name)
            self._checked.add(roles)


def check_template(
    tokenizer: PreTrainedTokenizerFast, roles: Sequence[str], whose: str, name: str = ""
) -> None:
    """Refuse a chat template that leaves out what a conversation says, or does not begin the answer.

    Args:
        roles: of the conversation's turns, in order.
        whose: the model's name; name: the request's, both for the message.

    Raises:
        KdzooError: there is no template, it refuses these roles, drops a turn, or has no beginning of an answer.
    """
    where = f"request {name!r}: " if name else ""
    if not tokenizer.chat_template:
        raise KdzooError(
            f"{where}a conversation is given, and the tokenizer of {whose} has no chat template: how its roles are to "
            "be written is not known, and any guess would be another prompt than it was trained with. Give one string, "
            "or set tokenizer.chat_template."
        )
    probes = [f"kdzoo{place}probe" for place in range(len(roles))]
    turns = list(zip(roles, probes, strict=True))
    text = _rendered(tokenizer, turns, whose, name, False)
    if lost := sorted({role for role, probe in turns if probe not in text}):
        raise KdzooError(
            f"{where}the chat template of {whose} leaves out what {', '.join(map(repr, lost))} says: the teacher would "
            "answer another question. Its template must write {{ message['content'] }} for each of the roles "
            f"{', '.join(map(repr, dict.fromkeys(roles)))}; put the text into a turn that it writes, or correct the "
            "template."
        )
    if roles[-1] != "assistant" and text == _rendered(tokenizer, turns, whose, name, None):
        raise KdzooError(
            f"{where}the chat template of {whose} does not know add_generation_prompt: nothing would tell the model "
            "that the answer begins, and it might go on in the user's name. Add a beginning of the assistant's turn to "
            "the template, under {% if add_generation_prompt %}."
        )


def _rendered(
    tokenizer: PreTrainedTokenizerFast,
    turns: Sequence[tuple[str, str]],
    whose: str,
    name: str,
    ids: bool | None,
) -> Any:
    """A conversation up to where the answer begins, as ids or (False) as text; None: as text without a beginning."""
    try:
        return tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns],
            add_generation_prompt=ids is not None,
            tokenize=bool(ids),
            return_dict=False,
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise KdzooError(
            f"request {name!r}: the chat template of {whose} refuses the roles "
            f"{', '.join(repr(role) for role, _ in turns)} ({error}). Give the turns in the form that it takes."
        ) from error
