"""A teacher that speaks in this process: a model of transformers and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib import metadata
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from kdzoo.errors import KdzooError
from kdzoo.rng import uniforms
from kdzoo.roles import state_hash
from kdzoo.speakers.speech import (
    Generation,
    Pair,
    Prompt,
    Reply,
    Request,
    Scored,
    Spend,
    Usage,
    digest,
    free,
    sample_seed,
    too_long,
)
from kdzoo_llm.decoding import Marks, Row, asking, beam, draw
from kdzoo_llm.fingerprints import template_hash, tokenizer_hash, vocabulary_hash
from kdzoo_llm.models import LanguageModel
from kdzoo_llm.prompts import Encode, Prompts, require_vocabulary
from kdzoo_llm.sequences import padded


class LocalSpeaker:
    """A `kdzoo.speakers.speech.Speaker` on a model in memory, decoder-only or with an encoder.

    Requests of one call are sorted by length and computed in batches; each sample draws from numbers of its own, so
    its text does not depend on what it was computed with, rounding apart. Where bits matter, ask the same lists.

    Args:
        net: a model of transformers, or a `LanguageModel` around one; it is put into evaluation mode while it speaks.
        tokenizer: whose ids the model was trained with.
        name: for messages and records.
        vocabulary: `vocabulary_hash` of what the weights were trained with, where that is known; checked.
        context: tokens that it can read and write together (with an encoder: each); None: as its configuration says,
            0: without limit.
        batch: samples computed at once.
        encode: text -> ids; None: as in training (`kdzoo_llm.prompts.Prompts`). `kdzoo_llm.prompts.plain` is for
            pretrained models that continue text.
        encoding: a name for `encode`, since a function cannot be hashed.

    Raises:
        KdzooError: tokenizer and model do not belong together.
    """

    def __init__(
        self,
        net: PreTrainedModel | LanguageModel,
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        *,
        vocabulary: str | None = None,
        context: int | None = None,
        batch: int = 32,
        encode: Encode | None = None,
        encoding: str = "",
    ) -> None:
        self.net: PreTrainedModel = net.net if isinstance(net, LanguageModel) else net
        self.tokenizer, self.name, self.batch = tokenizer, name, batch
        if encode is not None and not encoding:
            raise KdzooError(
                f"speaker {name!r} encodes prompts in a way of its own, which has no name: its answers could be taken "
                "for those to other prompts. Give it one, encoding='...'."
            )
        self.encoding = encoding or "as trained"
        self.seq2seq = bool(self.net.config.is_encoder_decoder)
        self.prompts = Prompts(tokenizer, name, encode)
        if vocabulary is not None:
            require_vocabulary(
                tokenizer, vocabulary, f"the training of {name}", "the tokenizer given with it"
            )
        embedding: Any = self.net.get_input_embeddings()
        rows = len(embedding.weight)
        if rows < len(tokenizer):
            raise KdzooError(
                f"speaker {name!r}: the model has {rows:,} tokens and the tokenizer {len(tokenizer):,}: ids above "
                "would be outside of the embedding. Take the tokenizer that belongs to the model."
            )
        self.context = context if context is not None else _context(self.net, tokenizer)
        self.marks = self._marks()

    def _marks(self) -> Marks:
        config, own = self.net.config, self.net.generation_config
        ends: set[int] = set()
        for found in (self.tokenizer.eos_token_id, own.eos_token_id if own is not None else None):
            ends |= set(found) if isinstance(found, list) else {found} if found is not None else set()
        pad = self.tokenizer.pad_token_id
        # Masked out wherever it stands: any id serves where a tokenizer has no padding.
        marks = Marks(0 if pad is None else pad, frozenset(ends), len(self.tokenizer))
        if not self.seq2seq:
            return marks
        start = getattr(config, "decoder_start_token_id", None)
        start = start if start is not None else getattr(own, "decoder_start_token_id", None)
        if start is None:
            raise KdzooError(
                f"speaker {self.name!r}: the configuration does not say with which token the decoder starts "
                "(decoder_start_token_id), and another one would be another model. Set it."
            )
        return Marks(marks.pad, marks.ends, marks.size, int(start))

    @property
    def identity(self) -> dict[str, Any]:
        """Who speaks; weights are hashed once, so a speaker is for weights that stay."""
        return dict(self._identity)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        parameter = next(self.net.parameters())
        config = self.net.config.to_dict()
        for passing in ("_name_or_path", "transformers_version"):
            config.pop(passing, None)
        return {
            "speaker": "transformers",
            "name": self.name,
            "weights": state_hash(self.net),
            "config": digest(_plain(config)),
            "attention": str(getattr(self.net.config, "_attn_implementation", None)),
            "tokenizer": tokenizer_hash(self.tokenizer),
            "vocabulary": vocabulary_hash(self.tokenizer),
            "template": template_hash(self.tokenizer),
            "encoding": self.encoding,
            "context": self.context,
            "batch": self.batch,
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "device": parameter.device.type,
            "torch": torch.__version__,
            "transformers": metadata.version("transformers"),
        }

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse prompts of another vocabulary, or which do not fit the context, or the chat template."""
        self._read(requests)

    def generate(self, requests: Sequence[Request], spend: Spend = free) -> Iterator[Reply]:
        """Replies in the order of the requests, once all are computed."""
        asked = list(requests)
        return self._replies(asked, self._read(asked), spend)

    def score(self, pairs: Sequence[Pair], spend: Spend = free) -> Iterator[Scored]:
        """Log-probability of each token of the texts, encoded apart from their prompts, as answers are in training."""
        asked, written = list(pairs), []
        for pair in asked:
            prompt = self.prompts.ids(pair.prompt, pair.id)
            text = list(self.tokenizer.encode(pair.text, add_special_tokens=False))
            if pair.end:
                text += self._end(pair)
            self._fits(pair.id, pair.prompt, len(prompt), len(text))
            written.append((prompt, text))
        return self._scores(asked, written, spend)

    # --- what is asked --------------------------------------------------------------------------------------

    def _read(self, requests: Sequence[Request]) -> list[list[int]]:
        """Ids of all prompts, checked."""
        found = []
        for request in requests:
            ids = self.prompts.ids(request.prompt, request.id)
            self._fits(request.id, request.prompt, len(ids), request.max_tokens)
            found.append(ids)
        return found

    def _fits(self, name: str, prompt: Prompt, tokens: int, more: int) -> None:
        needed = max(tokens, more) if self.seq2seq else tokens + more
        if self.context and needed > self.context:
            raise too_long(name, prompt, tokens, more, self.context, at_least=False)

    def _end(self, pair: Pair) -> list[int]:
        if self.tokenizer.eos_token_id is None:
            raise KdzooError(
                f"pair {pair.id!r}: the tokenizer of {self.name} has no token that ends a text (eos), so its "
                "probability cannot be told. Set end=False."
            )
        return [self.tokenizer.eos_token_id]

    # --- what is computed -----------------------------------------------------------------------------------

    def _replies(
        self, requests: Sequence[Request], prompts: Sequence[list[int]], spend: Spend
    ) -> Iterator[Reply]:
        found: dict[int, list[Row]] = {}
        for group in self._batches(requests, prompts):
            search = requests[group[0]].beams > 1
            rows = (self._searched if search else self._drawn)(requests, prompts, group)
            for place in group:
                found[place] = [row for row in rows if group[row.prompt] == place]
        for place, request in enumerate(requests):
            rows = found.pop(place)
            samples = tuple(self._generation(request, row) for row in rows)
            usage = Usage(1, len(prompts[place]), sum(len(row.tokens) for row in rows))
            usage.charge(spend)
            yield Reply(request.id, samples, usage)

    def _batches(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> Iterator[list[int]]:
        """Places of requests that are computed together: equal kinds of search, similar lengths, `batch` samples."""

        def kind(place: int) -> tuple[Any, ...]:
            one = requests[place]
            search = (one.beams, one.n, one.max_tokens, one.length_penalty)
            return search if one.beams > 1 else (1,)

        order = sorted(range(len(requests)), key=lambda place: (kind(place), len(prompts[place]), place))
        group: list[int] = []
        samples = 0
        for place in order:
            more = max(requests[place].n, requests[place].beams)
            if group and (samples + more > self.batch or kind(place) != kind(group[0])):
                yield group
                group, samples = [], 0
            group.append(place)
            samples += more
        if group:
            yield group

    def _drawn(
        self, requests: Sequence[Request], prompts: Sequence[list[int]], group: Sequence[int]
    ) -> list[Row]:
        rows = []
        for at, place in enumerate(group):
            request = requests[place]
            chance = None
            if request.temperature > 0:
                seeds = [sample_seed(request, number) for number in range(request.n)]
                chance = uniforms(torch.tensor(seeds), request.max_tokens)
            for number in range(request.n):
                rows.append(
                    Row(
                        at,
                        request.max_tokens,
                        request.temperature,
                        request.top_p,
                        request.presence_penalty,
                        request.frequency_penalty,
                        chance[number] if chance is not None else None,
                        self._stops(request.stop) if request.stop else None,
                    )
                )
        draw(self.net, [prompts[place] for place in group], rows, self.marks)
        return rows

    def _searched(
        self, requests: Sequence[Request], prompts: Sequence[list[int]], group: Sequence[int]
    ) -> list[Row]:
        first = requests[group[0]]
        found = beam(
            self.net,
            [prompts[place] for place in group],
            self.marks,
            beams=first.beams,
            n=first.n,
            max_tokens=first.max_tokens,
            length_penalty=first.length_penalty,
        )
        return [row for rows in found for row in rows]

    def _stops(self, stops: Sequence[str]) -> Callable[[list[int]], bool]:
        longest = max(map(len, stops))

        def ended(tokens: list[int]) -> bool:
            # A token is at least a byte, and a character at most four.
            tail = self._text(tokens[-4 * longest - 8 :])
            return any(stop in tail for stop in stops)

        return ended

    def _generation(self, request: Request, row: Row) -> Generation:
        text = self._text(row.tokens)
        ends = [at for stop in request.stop if (at := text.find(stop)) >= 0]
        return Generation(
            text[: min(ends)] if ends else text,
            tokens=row.tokens,
            finish="stop" if ends else row.finish,
            logprobs=row.logprobs if request.logprobs else None,
            score=row.score,
        )

    def _text(self, tokens: Sequence[int]) -> str:
        text = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _scores(
        self, pairs: Sequence[Pair], written: Sequence[tuple[list[int], list[int]]], spend: Spend
    ) -> Iterator[Scored]:
        order = sorted(
            (place for place, (_, text) in enumerate(written) if text),
            key=lambda place: (len(written[place][0]) + len(written[place][1]), place),
        )
        found: dict[int, list[float]] = {}
        model = LanguageModel(self.net)
        for first in range(0, len(order), self.batch):
            group = order[first : first + self.batch]
            view = padded([written[place] for place in group], self.marks.pad)
            view = {name: value.to(self.net.device) for name, value in view.items()}
            with asking(self.net):
                logits = model(view).logits
                assert logits is not None
                # Ids that the tokenizer does not have take no probability, as when they are drawn.
                logits = logits[..., : self.marks.size].float()
                said = logits.log_softmax(-1).gather(-1, view["answer"][..., None])[..., 0]
            for place, values in zip(group, said.tolist(), strict=True):
                found[place] = values[: len(written[place][1])]
        for place, pair in enumerate(pairs):
            prompt, text = written[place]
            usage = Usage(1, len(prompt) + len(text))
            usage.charge(spend)
            yield Scored(pair.id, found.pop(place, []), text, usage)


def _context(net: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> int:
    """How many tokens fit, by the configuration; 0 where nothing limits them."""
    said = getattr(net.config, "max_position_embeddings", None)
    if said is None and not net.config.is_encoder_decoder:
        said = tokenizer.model_max_length
    return int(said) if said is not None and 0 < said < 1 << 30 else 0


def _plain(value: Any) -> Any:
    """A configuration as JSON values."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
