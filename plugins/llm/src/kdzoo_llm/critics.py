"""Critics: classifiers of pairs of texts, a small one on bags of words, or an encoder by name.

A view of a batch of pairs is a dictionary: ids (B, L) int64, mask (B, L) bool, side (B, L) int64, 0 for the first text
and 1 for the second. A critic returns logits (B,): above 0 where it takes the pair for valid. Shapes: B pairs, L tokens
of the longest, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from kdzoo.errors import KdzooError
from kdzoo.losses.masks import Reduction, reduce
from kdzoo.method import Batch, Output
from kdzoo_llm.vocabularies import Vocabulary

PAIR = "pair"
"""The view that critics read."""

WIDTH = 64  # of the small encoder


class Critic(nn.Module):
    """An encoder and a head of two layers: dropout, D to `hidden`, GELU, dropout, one logit.

    Args:
        encoder: takes a view, gives (B, D).
        width: D.
        hidden: 512 in the official code.
        prior: share of valid pairs, whose log-odds the output begins with; 0.77 in the official code.
        dropout: 0.1 in the official code.

    Source: peterwestai2/symbolic-knowledge-distillation@7fa8cbf purification_code.
    """

    def __init__(self, encoder: nn.Module, width: int, *, hidden: int, prior: float, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
        )
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, math.log(prior / (1 - prior)))

    def forward(self, view: dict[str, Any]) -> Output:
        return Output(logits=self.head(self.encoder(view)).squeeze(1))


class SmallEncoder(nn.Module):
    """Both texts as means of their tokens' vectors a and b, and how they meet: a, b, a * b and |a - b|, 4 D together.

    A transformer of this size, trained on a few thousand pairs, did not learn to compare two texts.
    """

    def __init__(self, vocabulary: int, dropout: float) -> None:
        super().__init__()
        self.tokens, self.dropout = nn.Embedding(vocabulary, WIDTH), nn.Dropout(dropout)
        nn.init.normal_(self.tokens.weight, std=0.5)

    def forward(self, view: dict[str, Any]) -> Tensor:
        vectors, kept = self.tokens(view["ids"]), view["mask"]
        means = []
        for side in (0, 1):
            own = (kept & (view["side"] == side)).unsqueeze(2)
            means.append((vectors * own).sum(1) / own.sum(1))
        a, b = means
        met: Tensor = self.dropout(torch.cat((a, b, a * b, (a - b).abs()), 1))
        return met


class NamedEncoder(nn.Module):
    """An encoder of transformers by folder or hub name; its pooled output, or the first token's state."""

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise KdzooError(
                f"the critic {name!r} cannot be had ({str(error).splitlines()[0]}). Give 'small', the folder of a "
                "downloaded encoder, or a name on the Hugging Face hub."
            ) from error
        net: Any = (
            AutoModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
            if pretrained
            else AutoModel.from_config(config, trust_remote_code=False)
        )
        self.net, self.width, self.two_sides = net, int(config.hidden_size), config.type_vocab_size > 1

    def forward(self, view: dict[str, Any]) -> Tensor:
        sides = {"token_type_ids": view["side"]} if self.two_sides else {}
        said = self.net(input_ids=view["ids"], attention_mask=view["mask"].long(), **sides)
        pooled: Tensor | None = said.pooler_output
        return said.last_hidden_state[:, 0] if pooled is None else pooled


def build(
    name: str,
    vocabulary: Vocabulary,
    *,
    length: int,
    hidden: int,
    prior: float,
    dropout: float,
    pretrained: bool,
) -> Critic:
    """A critic by name: "small", or an encoder's folder or hub name.

    Args:
        length: tokens of a pair at most.
        pretrained: of a named encoder: load its weights.
    """
    if name == "small":
        encoder: nn.Module = SmallEncoder(vocabulary.size, dropout)
        return Critic(encoder, 4 * WIDTH, hidden=hidden, prior=prior, dropout=dropout)
    named = NamedEncoder(name, pretrained)
    return Critic(named, named.width, hidden=hidden, prior=prior, dropout=dropout)


def critic_loss(logits: Tensor, labels: Tensor, *, reduction: Reduction) -> Tensor:
    """Binary cross-entropy of each pair, nats: ``-y log s(z) - (1 - y) log(1 - s(z))``.

    Args:
        logits: (B,).
        labels: (B,) 0 or 1.
        reduction: "none" = one value per pair, "mean" or "sum" over pairs.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values = F.binary_cross_entropy_with_logits(wide, labels.to(wide.dtype), reduction="none")
    return reduce(values, reduction=reduction)


@dataclass(frozen=True)
class Pairs:
    """Pairs to be judged, each said in one or more ways of equal meaning.

    Attributes:
        ids: one a pair.
        ways: for each pair, its (first text, second text) in every way.
        labels: 1 valid, 0 not; -1 not known.
        length: tokens of a pair at most, special ones included.
        separators: end tokens between the two texts.
    """

    ids: Sequence[str]
    ways: Sequence[Sequence[tuple[str, str]]]
    labels: Sequence[int]
    vocabulary: Vocabulary
    length: int
    separators: int = 1

    @cached_property
    def encoded(self) -> list[list[tuple[list[int], list[int]]]]:
        """Ids of every pair in every way; each text is encoded once.

        Raises:
            KdzooError: a pair is too long: cut, its second text would be judged by its beginning.
        """
        texts = list(dict.fromkeys(text for ways in self.ways for pair in ways for text in pair))
        ids = dict(zip(texts, self.vocabulary.encode_all(texts), strict=True))
        found = [[(ids[first], ids[second]) for first, second in ways] for ways in self.ways]
        for name, ways in zip(self.ids, found, strict=True):
            if (long := max(len(a) + len(b) + 2 + self.separators for a, b in ways)) > self.length:
                raise KdzooError(
                    f"pair {name!r} has {long} tokens, critic_length is {self.length}: cut, it would be judged by its "
                    "beginning. Raise critic_length, or leave such pairs out."
                )
        return found

    def view(self, rows: Sequence[int], ways: Sequence[int]) -> dict[str, Any]:
        """Some pairs as a critic reads them: <bos> first <eos> second <eos>, with one <eos> in between or two."""
        bos, eos = self.vocabulary.bos, self.vocabulary.eos
        chosen = [
            self.encoded[row][way % len(self.encoded[row])] for row, way in zip(rows, ways, strict=True)
        ]
        between = [eos] * self.separators
        whole = [[bos, *first, *between, *second, eos] for first, second in chosen]
        longest = max(map(len, whole))
        ids = torch.tensor([row + [self.vocabulary.pad] * (longest - len(row)) for row in whole])
        places = torch.arange(longest)
        mask = places < torch.tensor([[len(row)] for row in whole])
        side = (places >= torch.tensor([[len(first) + 1 + self.separators] for first, _ in chosen])) & mask
        return {"ids": ids, "mask": mask, "side": side.long()}


def collate(items: Pairs, rows: Tensor, seeds: Tensor | None) -> Batch:
    """A batch; in training the way in which a pair is said is drawn, else it is the first."""
    places = rows.tolist()
    ways = [0] * len(places) if seeds is None else (seeds >> 7).tolist()
    return Batch(
        ids=[items.ids[i] for i in places],
        views={PAIR: items.view(places, ways)},
        labels=torch.tensor([items.labels[i] for i in places]),
        counts={"item": len(places)},
    )


@torch.no_grad()
def scores(critic: nn.Module, pairs: Pairs, passes: int, batch: int = 256) -> Tensor:
    """(N,) probability that each pair is valid: the mean over `passes` ways of saying it, in evaluation mode."""
    critic.eval()
    device = next(critic.parameters()).device
    found = []
    for first in range(0, len(pairs.ids), batch):
        rows = range(first, min(first + batch, len(pairs.ids)))
        said = []
        for way in range(passes):
            view = {name: value.to(device) for name, value in pairs.view(rows, [way] * len(rows)).items()}
            said.append(critic(view).logits.double().sigmoid().cpu())
        found.append(torch.stack(said).mean(0))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)
