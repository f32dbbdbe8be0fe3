"""Prompts to the right edge, answers to the left, and labels only where an answer has tokens."""

from __future__ import annotations

import pytest
import torch

from kdzoo.errors import KdzooError
from kdzoo_llm import models, vocabularies
from kdzoo_llm.examples import Example
from kdzoo_llm.language import cross_entropy
from kdzoo_llm.sequences import IGNORE, Reading, serve

EXAMPLES = [
    Example("train/0", "rule: a @@@ b = a + 3. 1 @@@ 2 =", "4."),
    Example("train/1", "12 @@@ 30 =", "49."),
    Example("train/2", "7 @@@ 8 =", "9."),
]
ALL = torch.arange(3)


@pytest.fixture(scope="module")
def reading() -> Reading:
    return Reading(vocabularies.load("told-rule"), context=64)


def test_a_row_reads_as_it_was_written(reading: Reading) -> None:
    """Padding on the wrong side, a lost end, a label on padding."""
    data = serve(EXAMPLES, {"text": reading})
    batch = data.collate(data.items, ALL, None)
    view, tokenizer = batch.views["text"], reading.tokenizer
    for row, example in enumerate(EXAMPLES):
        prompt = view["prompt"][row][view["prompt_mask"][row]]
        answer = view["answer"][row][view["answer_mask"][row]]
        assert tokenizer.decode(prompt, skip_special_tokens=True) == example.prompt
        assert prompt[0] == tokenizer.bos_token_id
        assert prompt[-1] == tokenizer.sep_token_id
        assert tokenizer.decode(answer, skip_special_tokens=True) == example.answer
        assert answer[-1] == tokenizer.eos_token_id
        assert torch.equal(batch.labels[row][batch.labels[row] != IGNORE], answer)
    assert view["prompt_mask"][:, -1].all()  # left padding
    assert view["answer_mask"][:, 0].all()
    assert batch.counts == {"item": 3, "token": int(view["answer_mask"].sum())}


def test_a_pool_shows_no_label(reading: Reading) -> None:
    """Answers of a pool that a loss can see."""
    data = serve(EXAMPLES, {"text": reading}, labelled=False)
    batch = data.collate(data.items, ALL, None)
    assert (batch.labels == IGNORE).all()
    assert batch.counts["token"] == 0


def test_the_hash_knows_the_text_and_the_labels(reading: Reading) -> None:
    """An artefact that is found again for other data."""
    hashes = {
        serve(EXAMPLES, {"text": reading}).hash,
        serve(EXAMPLES[:2], {"text": reading}).hash,
        serve(EXAMPLES, {"text": reading}, labelled=False).hash,
        serve([*EXAMPLES[:2], Example("train/2", "7 @@@ 8 =", "8.")], {"text": reading}).hash,
    }
    assert len(hashes) == 4


def test_what_is_longer_than_the_context_is_refused() -> None:
    """Positions that were never trained, or a prompt that is cut without a word."""
    short = Reading(vocabularies.load("told-rule"), context=12)
    data = serve(EXAMPLES, {"text": short})
    with pytest.raises(
        KdzooError, match=r"train/0 has \d+ tokens of prompt and \d+ of answer.*context is 12"
    ):
        data.collate(data.items, ALL, None)


def test_an_empty_answer_is_refused(reading: Reading) -> None:
    """A model that learns to say nothing."""
    with pytest.raises(KdzooError, match=r"1 examples have no answer \(x\)"):
        serve([Example("x", "1 @@@ 2 =", " ")], {"text": reading})
    serve([Example("x", "1 @@@ 2 =", "")], {"text": reading}, labelled=False)


@pytest.mark.parametrize("name", ["llama-xs", "t5-xs"])
def test_a_row_does_not_depend_on_what_it_is_padded_with(reading: Reading, name: str) -> None:
    """Positions or attention that count padding; an answer that is read one token early or late."""
    torch.manual_seed(0)
    model = models.build(name, reading.tokenizer).eval()
    data = serve(EXAMPLES, {"text": reading})
    with torch.no_grad():
        together = model(data.collate(data.items, ALL, None).views["text"])
        for row in range(3):
            batch = data.collate(data.items, torch.tensor([row]), None)
            alone = model(batch.views["text"])
            length = batch.labels.shape[1]
            torch.testing.assert_close(together.logits[row, :length], alone.logits[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(
                together.features["layer1"][row, :length], alone.features["layer1"][0], atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("name", ["llama-xs", "t5-xs"])
def test_the_loss_is_that_of_transformers(reading: Reading, name: str) -> None:
    """Labels held against the wrong position: transformers shifts them itself."""
    torch.manual_seed(0)
    model = models.build(name, reading.tokenizer).eval()
    data = serve(EXAMPLES, {"text": reading})
    batch = data.collate(data.items, torch.tensor([0]), None)
    view = batch.views["text"]
    ours = cross_entropy(model(view), batch.labels) / batch.counts["token"]
    if model.seq2seq:
        theirs = model.net(input_ids=view["prompt"], labels=batch.labels).loss
    else:
        ids = torch.cat((view["prompt"], view["answer"]), 1)
        labels = torch.cat((torch.full_like(view["prompt"], IGNORE), batch.labels), 1)
        theirs = model.net(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_model_with_too_few_tokens_is_refused(reading: Reading, tmp_path) -> None:
    """Ids outside of the embedding."""
    small = models.build("llama-xs", vocabularies.load("told-rule"))
    small.net.save_pretrained(tmp_path / "net")
    with pytest.raises(KdzooError, match=r"has \d+ tokens and the tokenizer \d+"):
        models.build(str(tmp_path / "net"), vocabularies.load("word-problems"))
    loaded = models.build(str(tmp_path / "net"), reading.tokenizer)
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in small.parameters())


def test_unknown_names_are_refused(reading: Reading) -> None:
    """A traceback from deep inside transformers."""
    with pytest.raises(KdzooError, match="llama-xs"):
        models.build("llama-sx", reading.tokenizer)
    with pytest.raises(KdzooError, match="told-rule"):
        vocabularies.load("told-rules")
    with pytest.raises(KdzooError, match="cannot load the model"):
        models.build("./no/such/folder", reading.tokenizer)
