"""Prompts as numbers: word pieces, then a small BERT encoder, in the layout that transformers writes.

Devlin et al. 2019 (arXiv 1810.04805); layers are those of Vaswani et al. 2017 (arXiv 1706.03762, section 3), the norm
behind each sum. transformers computes the same: importing it takes longer than a start takes for its volumes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import embedding, gelu, layer_norm, linear

from threed.distill.folder import readable, restore
from threed.distill.word import beginning, heard, names

PAD = 0  # BERT's number of nothing
TABLE = "embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class Text:
    """N encoded prompts."""

    tokens: Float[Tensor, "N tokens features"]
    mean: Float[Tensor, "N features"]  # over the real tokens


@dataclass(frozen=True)
class TextReader:
    """What encodes prompts for a prior; make one with `load`."""

    tokenizer: Tokenizer
    weights: dict[str, Tensor]  # float32, by transformers' names
    layers: int
    heads: int
    epsilon: float  # of its norms
    limit: int  # tokens of a prompt, the two markers at its ends included
    word: Float[Tensor, "K F"] | None = None  # that it knows beside its own, see `distill.word`

    @staticmethod
    def load(folder: Path, limit: int, device: torch.device | str = "cpu") -> TextReader:
        """From a prior's folder, compressed or not; raises UnreadablePrior when a file is at fault."""
        config, model = folder / "text_encoder" / "config.json", folder / "text_encoder" / "model.safetensors"
        with readable(config):
            told = json.loads(config.read_text(encoding="utf-8"))
            for name, known in (("model_type", "bert"), ("hidden_act", "gelu")):
                if told[name] != known:
                    raise ValueError(f"{name} is {told[name]!r}, this program knows {known!r}")
            shape = told["num_hidden_layers"], told["num_attention_heads"], told["layer_norm_eps"]
        tokenizer = load_tokenizer(folder)
        with readable(model):
            weights = {name: value.to(device) for name, value in restore(load_file(model)).items()}
            reader = TextReader(tokenizer, weights, *shape, limit)
            reader([""])  # or a weight that lacks, or is of another shape, would be noticed too late
        return reader

    @property
    def features(self) -> int:
        return self.weights[TABLE].shape[1]

    @property
    def device(self) -> torch.device:
        return self.weights[TABLE].device

    def beginning(self, prompt: str, count: int) -> Float[Tensor, "K F"]:
        """A word of so many vectors that means what the prompt does."""
        return beginning(self.weights[TABLE], pieces(self.tokenizer, prompt)[1:-1], count)

    def knowing(self, word: Float[Tensor, "K F"]) -> TextReader:
        """The same, for prompts with this word in them."""
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.add_tokens(names(len(word)))
        return replace(self, tokenizer=tokenizer, word=word)

    def __call__(self, prompts: Sequence[str]) -> Text:
        """Each prompt by itself; what goes beyond `limit` tokens is cut off. Differentiable to a word."""
        rows = [self._cut(pieces(self.tokenizer, prompt)) for prompt in prompts]
        ids = torch.tensor([row + [PAD] * (self.limit - len(row)) for row in rows]).to(self.device, non_blocking=True)
        real = torch.tensor([[k < len(row) for k in range(self.limit)] for row in rows])
        real = real.to(self.device, non_blocking=True)
        with torch.autocast(ids.device.type, enabled=False):  # the same in training as in use
            states = self.states(ids, real)
        share = real[:, :, None].to(states)
        return Text(tokens=states, mean=(states * share).sum(dim=1) / share.sum(dim=1))

    def states(self, ids: Int[Tensor, "N T"], real: Bool[Tensor, "N T"]) -> Float[Tensor, "N T F"]:
        """What the last layer says of every token; nobody attends to tokens that are not real."""
        own = self.weights
        place, kind = own["embeddings.position_embeddings.weight"], own["embeddings.token_type_embeddings.weight"]
        x = self._embedded(ids) + place[: ids.shape[1]] + kind[0]
        x = self._norm("embeddings", x)
        away = torch.zeros(real.shape, device=x.device).masked_fill(~real, -torch.inf)[:, None, None]
        for k in range(self.layers):
            layer = f"encoder.layer.{k}"
            parts = (self._linear(f"{layer}.attention.self.{name}", x) for name in ("query", "key", "value"))
            query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
            weights = (query @ key.mT / query.shape[-1] ** 0.5 + away).softmax(dim=-1)
            attended = self._linear(f"{layer}.attention.output.dense", (weights @ value).transpose(1, 2).flatten(2))
            x = self._norm(f"{layer}.attention.output", x + attended)
            wide = gelu(self._linear(f"{layer}.intermediate.dense", x))
            x = self._norm(f"{layer}.output", x + self._linear(f"{layer}.output.dense", wide))
        return x

    def _embedded(self, ids: Int[Tensor, "N T"]) -> Float[Tensor, "N T F"]:
        if self.word is None:
            return embedding(ids, self.weights[TABLE])
        first = self.tokenizer.token_to_id(names(1)[0])
        assert first is not None  # it was added with the word
        return heard(ids, lambda known: embedding(known, self.weights[TABLE]), self.word, first)

    def _cut(self, row: list[int]) -> list[int]:
        """The marker at the end stays."""
        return row if len(row) <= self.limit else [*row[: self.limit - 1], row[-1]]

    def _linear(self, name: str, x: Float[Tensor, "N T F"]) -> Float[Tensor, "N T G"]:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Float[Tensor, "N T F"]) -> Float[Tensor, "N T F"]:
        weight, bias = (self.weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return layer_norm(x, weight.shape, weight, bias, self.epsilon)


def normalized(prompt: str) -> str:
    """Captions were trained in lower case."""
    return prompt.strip().lower()


def pieces(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt's word pieces, with the two markers at its ends."""
    return list(tokenizer.encode(normalized(prompt)).ids)


def load_tokenizer(folder: Path) -> Tokenizer:
    """What cuts prompts into word pieces; raises UnreadablePrior."""
    path = folder / "tokenizer" / "tokenizer.json"
    with readable(path):
        content = path.read_text(encoding="utf-8")
        try:
            tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # its errors have nothing else in common
            raise ValueError(str(error)) from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
    return tokenizer
