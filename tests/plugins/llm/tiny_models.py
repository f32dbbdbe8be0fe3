"""A vocabulary of single characters and tiny random models, for the tests of what speaks."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

SPECIAL = ["<pad>", "<bos>", "<eos>", "<sep>"]
LETTERS = "abcdefghijklmnopqrstuvwxyz .,:;\n"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def vocabulary(letters: str = LETTERS, sep: bool = True) -> PreTrainedTokenizerFast:
    """One token a character."""
    tokens = {token: place for place, token in enumerate([*SPECIAL, *letters])}
    inner = Tokenizer(models.WordLevel(tokens, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        **({"sep_token": "<sep>"} if sep else {}),
    )


def net(kind: str, tokens: PreTrainedTokenizerFast, seed: int = 0, spread: float = 0.4) -> PreTrainedModel:
    """Random weights, wide enough apart that answers are no blur; two ids more than the tokenizer has."""
    torch.manual_seed(seed)
    ids = {
        "vocab_size": len(tokens) + 2,
        "pad_token_id": tokens.pad_token_id,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
    }
    made: PreTrainedModel
    if kind == "llama":
        made = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=64,
                **ids,
            )
        )
    elif kind == "gpt2":
        made = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **ids))
    else:
        made = T5ForConditionalGeneration(
            T5Config(
                d_model=16,
                d_ff=32,
                d_kv=8,
                num_layers=2,
                num_heads=2,
                decoder_start_token_id=tokens.pad_token_id,
                **ids,
            )
        )
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.normal_(0, spread)
    return made
