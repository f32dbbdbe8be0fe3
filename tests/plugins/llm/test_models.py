"""Models, views and adapters: what padding, batches and families of models must not change."""

from __future__ import annotations

import pytest
import torch

from kdzoo.errors import KdzooError
from kdzoo_llm.adapters import adapted, merge, trained_parameters
from kdzoo_llm.data.examples import Example
from kdzoo_llm.models import LanguageModel, build
from kdzoo_llm.sequences import Encoded, Reading, encode, view_of
from kdzoo_llm.vocabularies import open_vocabulary, word_level

WORDS = word_level("words", list("abcdefgh"))
ROWS = [Encoded([1, 4, 5, 6], [7, 8, 2]), Encoded([1, 4], [9, 2]), Encoded([1], [10, 11, 4, 2])]
FAMILIES = ("llama-xs", "t5-xs")


def made(name: str, features: bool = False) -> LanguageModel:
    torch.manual_seed(0)
    return build(name, WORDS, context=16, features=features).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_says_the_same_alone_and_in_a_batch(name: str) -> None:
    """Padding that is attended to, or positions that count it, would make results depend on the batch."""
    model = made(name)
    together = model(view_of(ROWS, WORDS)).logits
    for place, row in enumerate(ROWS):
        alone = model(view_of([row], WORDS, least=9)).logits[0, : len(row.answer)]
        torch.testing.assert_close(together[place, : len(row.answer)], alone, atol=2e-6, rtol=0)


def test_decoder_only_logits_predict_the_next_token() -> None:
    """Off by one, the first token of the answer would never be learnt."""
    model = made("llama-xs")
    row = ROWS[0]
    ids = torch.tensor([row.prompt + row.answer])
    expected = model.net(input_ids=ids).logits[0, len(row.prompt) - 1 : -1]
    torch.testing.assert_close(model(view_of([row], WORDS)).logits[0], expected)


def test_encoder_decoder_logits_are_those_of_transformers() -> None:
    """The body is called without the head: a scale that T5 puts between them must not be lost."""
    model = made("t5-xs")
    view = view_of(ROWS, WORDS)
    shifted = torch.cat((torch.full((3, 1), WORDS.bos), view["answer"][:, :-1]), 1)
    expected = model.net(
        input_ids=view["prompt"], attention_mask=view["prompt_mask"].long(), decoder_input_ids=shifted
    ).logits
    torch.testing.assert_close(model(view).logits, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_given_where_asked_for(name: str) -> None:
    """A method that compares inner states must find them at the positions that predict."""
    said = made(name, features=True)(view_of(ROWS, WORDS))
    assert set(said.features) == {"layer0", "layer1"}
    assert all(state.shape == (3, 4, 48) for state in said.features.values())
    assert not made(name)(view_of(ROWS, WORDS)).features


def test_ids_of_another_vocabulary_are_refused() -> None:
    """They would be taken for other tokens, and the loss would look plausible."""
    other = word_level("others", list("hgfedcba"))
    with pytest.raises(KdzooError, match="ids of another one"):
        made("llama-xs")(view_of(ROWS, other))


def test_what_does_not_fit_is_refused() -> None:
    """A cut answer would be learnt as if it were whole."""
    with pytest.raises(KdzooError, match="its answer has 4 tokens, answer_length is 3"):
        encode([Example("x/1", "a", "b c d")], Reading(WORDS, 4, 3))
    with pytest.raises(KdzooError, match="its prompt has 3 tokens, prompt_length is 2"):
        encode([Example("x/1", "a b", "c")], Reading(WORDS, 2, 3))


@pytest.mark.parametrize(
    ("name", "message"),
    [("words:nothing", "nothing"), ("file:nothing", "no tokenizer 'nothing'"), ("/nowhere", "cannot be had")],
)
def test_unknown_vocabularies_are_named(name: str, message: str) -> None:
    """A traceback of a library would not say what to write."""
    with pytest.raises(KdzooError, match=message):
        open_vocabulary(name)


def test_unknown_models_are_named() -> None:
    """The message must list what there is."""
    with pytest.raises(KdzooError, match="llama-xs"):
        build("lama-xs", WORDS, context=8)


# --- adapters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapted_model_starts_as_its_base_and_merges_exactly(name: str) -> None:
    """A random start would not be a fine-tuning; a merge that differs would ship another model than was measured."""
    base, view = made(name), view_of(ROWS, WORDS)
    student = adapted(base, rank=2, alpha=4).eval()
    torch.testing.assert_close(student(view).logits, base(view).logits, atol=2e-6, rtol=0)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    said = student(view).logits
    assert (said - base(view).logits).abs().max() > 0.1
    merge(student)
    torch.testing.assert_close(student(view).logits, said, atol=1e-4, rtol=1e-5)
    assert list(student.state_dict()) == list(base.state_dict())


def test_only_adapters_are_trained_and_their_size_is_the_formula() -> None:
    """Training the base too would not be low rank."""
    base = made("llama-xs")
    student = adapted(base, rank=3, alpha=3)
    # q, k, v, o: 48 x 48; gate, up: 48 -> 96; down: 96 -> 48; each rank * (in + out)
    assert trained_parameters(student) == 3 * (4 * 96 + 3 * 144)
    assert trained_parameters(base) == sum(parameter.numel() for parameter in base.parameters())
    student(view_of(ROWS, WORDS)).logits.sum().backward()
    for name, parameter in student.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name)
