"""Language models by name: Llama and T5 of transformers, from ten thousand parameters up, and any folder or hub name.

``build("llama-xs", tokenizer)`` gives a module whose ``forward(view)`` returns a `kdzoo.method.Output`; losses never
ask whether a model is decoder-only or has an encoder: positions are those of the answer.

Shapes: B rows, P tokens of prompt (padded on the left), T tokens of answer (padded on the right), V vocabulary,
D width.

    view        dict of `kdzoo_llm.sequences`: prompt (B, P), prompt_mask, answer (B, T), answer_mask; int64 and bool
    logits      (B, T, V): what comes at each position of the answer, given the prompt and the answer before it
    features    "layer0" (embeddings) ... "layerN": (B, T, D), hidden states at these positions (of the decoder)
    mask        (B, T) bool: where the answer has a token

Not here: weights from code: a hub name loads safetensors only, and no code of the model's author is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from kdzoo.cards import Side
from kdzoo.errors import KdzooError, unknown
from kdzoo.method import Output

CONTEXT = 256  # positions of the tiny models


def _llama(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 8 * width // 3 // 8 * 8,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }


def _t5(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "d_model": width,
        "d_ff": 2 * width,
        "d_kv": width // heads,
        "num_layers": layers,
        "num_heads": heads,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
    }


SPECS: dict[str, dict[str, Any]] = {
    "llama-xs": _llama(48, 1, 4),
    "llama-s": _llama(64, 2, 4),
    "llama-m": _llama(128, 3, 4),
    "llama-l": _llama(192, 4, 6),
    "t5-xs": _t5(48, 1, 4),
    "t5-s": _t5(64, 2, 4),
    "t5-m": _t5(128, 3, 4),
}  # fmt: skip
"""Tiny models for a CPU: Llama with tied embeddings, T5 with gated layers. The number of tokens is the vocabulary's."""


class LanguageModel(nn.Module):
    """A model of transformers that answers with an `Output` at the positions of the answer.

    Attributes:
        net: the model of transformers, for its own tools and for generation.
    """

    def __init__(self, net: PreTrainedModel) -> None:
        super().__init__()
        self.net = net

    @property
    def seq2seq(self) -> bool:
        """Whether the prompt goes through an encoder."""
        return bool(self.net.config.is_encoder_decoder)

    def forward(self, view: Mapping[str, Tensor]) -> Output:
        prompt, answer = view["prompt"], view["answer"]
        if self.seq2seq:
            said = self.net(
                input_ids=prompt,
                attention_mask=view["prompt_mask"].long(),
                decoder_input_ids=shifted(answer, self.net.config.decoder_start_token_id),
                output_hidden_states=True,
                use_cache=False,
            )
            states, logits = said.decoder_hidden_states, said.logits
        else:
            mask = torch.cat((view["prompt_mask"], view["answer_mask"][:, :-1]), 1)
            first = prompt.shape[1] - 1  # its position says what the first token of the answer is
            said = self.net(
                input_ids=torch.cat((prompt, answer[:, :-1]), 1),
                attention_mask=mask.long(),
                position_ids=positions(mask),
                output_hidden_states=True,
                use_cache=False,
                logits_to_keep=answer.shape[1],
            )
            states, logits = [state[:, first:] for state in said.hidden_states], said.logits
        return Output(
            logits=logits,
            features={f"layer{k}": state for k, state in enumerate(states)},
            mask=view["answer_mask"],
        )

    def head(self) -> Tensor:
        """The weight (V, D) that makes logits of the last hidden state."""
        weight: Tensor = self.net.get_output_embeddings().weight
        return weight


def shifted(answer: Tensor, start: int) -> Tensor:
    """What a decoder reads to say `answer` (B, T): the start, then the answer without its last token."""
    return torch.cat((answer.new_full((len(answer), 1), start), answer[:, :-1]), 1)


def positions(mask: Tensor) -> Tensor:
    """(B, L) places that count only what is not padding, so that padding on the left moves nothing."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def build(name: str, tokenizer: PreTrainedTokenizerFast, attention: str = "sdpa") -> LanguageModel:
    """A model by name.

    Args:
        name: one of `SPECS` (random weights), or a folder or hub name that transformers can load (its weights).
        tokenizer: decides the width of the output and the special tokens.
        attention: transformers' `attn_implementation`.

    Raises:
        KdzooError: no such name, or a model whose vocabulary is smaller than the tokenizer's.
    """
    if name in SPECS:
        net = _tiny(name, tokenizer, attention)
    elif "/" in name:
        net = _loaded(name, attention)
    else:
        raise unknown("model", name, SPECS, "Or give a folder, or a hub name with a slash in it.")
    if net.config.vocab_size < len(tokenizer):
        raise KdzooError(
            f"model {name!r} has {net.config.vocab_size} tokens and the tokenizer {len(tokenizer)}: ids above would be "
            "outside of the embedding. Take the tokenizer that belongs to the model."
        )
    return LanguageModel(net)


def _tiny(name: str, tokenizer: PreTrainedTokenizerFast, attention: str) -> PreTrainedModel:
    ids = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": True,
        "attn_implementation": attention,
    }
    if name.startswith("t5"):
        start: dict[str, Any] = {"decoder_start_token_id": tokenizer.pad_token_id}
        config = T5Config(**SPECS[name], **ids, **start)
        return T5ForConditionalGeneration(config)
    return LlamaForCausalLM(LlamaConfig(**SPECS[name], **ids, max_position_embeddings=CONTEXT))


def _loaded(name: str, attention: str) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(name)
        kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        net: PreTrainedModel = kind.from_pretrained(name, use_safetensors=True, attn_implementation=attention)
    except (OSError, ValueError) as error:
        raise KdzooError(
            f"cannot load the model {name!r}: {str(error).splitlines()[0]} Give a folder with config.json and "
            "*.safetensors, or a name on the hub; weights in other formats are refused because they can run code."
        ) from error
    return net


def side(name: str, tokenizer: PreTrainedTokenizerFast, vocabulary: str, view: str) -> Side:
    """What a model takes and gives, without its weights."""
    if name not in SPECS:
        return Side(outputs=["logits", "features"], classes=len(tokenizer), vocabulary=vocabulary, view=view)
    spec = SPECS[name]
    width = int(spec["hidden_size"] if "hidden_size" in spec else spec["d_model"])
    depth = int(spec["num_hidden_layers"] if "num_hidden_layers" in spec else spec["num_layers"])
    return Side(
        outputs=["logits", "features"],
        classes=len(tokenizer),
        vocabulary=vocabulary,
        view=view,
        layers={f"layer{k}": [-1, width] for k in range(depth + 1)},
    )
