"""A small transformer for every task: Llama's layers, causal or not, with RoPE, learned positions or both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Config:
    """The shape of a model.

    Attributes
    ----------
    vocab, outputs : int
        Tokens, and classes of an answer.
    width, layers, heads : int
    causal : bool
    rotated : float
        The share of a head's numbers that RoPE turns; the others match contents at any distance.
    base : float
        Of RoPE's wave lengths.
    learned : tuple of int
        Learned positions: a table for each number, into which a token's place is split (64, 64: row and column).
    trained : int
        From this length on, scores grow with the logarithm of the number of keys, so that attention stays as sharp;
        0 leaves them.
    taps : int
        Of a causal convolution before attention, number by number: so many tokens before each are mixed into it, which
        makes recall quick to learn.
    """

    vocab: int
    outputs: int
    width: int = 128
    layers: int = 2
    heads: int = 4
    causal: bool = True
    rotated: float = 0.5
    base: float = 10_000.0
    learned: tuple[int, ...] = ()
    trained: int = 0
    taps: int = 0


class Transformer(nn.Module):
    """Tokens to answers.

    Parameters
    ----------
    config : Config
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.width)
        self.places = nn.ModuleList(nn.Embedding(count, config.width) for count in config.learned)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, config.outputs, bias=False)
        std = 0.5 / math.sqrt(config.width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=std / math.sqrt(2 * config.layers) if deep else std)

    def forward(self, tokens: Tensor, at: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """Return logits.

        Parameters
        ----------
        tokens : Tensor of shape (batch, length), int64
        at : Tensor of shape (batch, answers), int64, optional
            Places whose answers are wanted; None means one answer for the whole sequence, from its mean.
        places : Tensor of shape (batch, length), int64, optional
            Where tokens stand, for learned positions; 0, 1, 2, … if not given.

        Returns
        -------
        Tensor of shape (batch, answers or 1, outputs)
        """
        x = self.embed(tokens)
        if self.places:
            left = torch.arange(tokens.shape[1])[None] if places is None else places
            for table in reversed(self.places):
                x = x + table(left % table.num_embeddings)
                left = left // table.num_embeddings
        turns = rotations(self.config, tokens.shape[1])
        for layer in self.layers:
            x = layer(x, turns)
        if at is None:
            return self.head(self.norm(x).mean(1, keepdim=True))
        return self.head(self.norm(x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))))


class Gated(nn.Module):
    """A gated linear unit: what Llama has for an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * width // 3 // 8 * 8
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, width) of the same."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """Attention, then an MLP."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.before = nn.RMSNorm(width, eps=1e-6)
        self.taps = nn.Parameter(0.5 * torch.randn(config.taps, width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.between = nn.RMSNorm(width, eps=1e-6)
        self.mlp = Gated(width)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """Return (batch, length, width) of the same."""
        heads = self.qkv(self._mixed(self.before(x))).unflatten(-1, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind()
        query, key = turn(query, turns), turn(key, turns)
        if self.config.trained:
            query = query * sharpness(self.config, x.shape[1])
        mixed = functional.scaled_dot_product_attention(
            query.contiguous(), key.contiguous(), value.contiguous(), is_causal=self.config.causal
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))

    def _mixed(self, x: Tensor) -> Tensor:
        return x + sum(tap * functional.pad(x, (0, 0, at, -at)) for at, tap in enumerate(self.taps, 1))


def rotations(config: Config, length: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of RoPE, (length, half of the numbers that are turned) each."""
    half = int(config.rotated * config.width // config.heads) // 2
    frequencies = config.base ** (-torch.arange(half) / max(1, half))
    angles = torch.arange(length)[:, None] * frequencies
    return angles.cos(), angles.sin()


def turn(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the first numbers of queries or keys (…, length, width) by their places; the halves are pairs."""
    cosine, sine = turns
    half = cosine.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], -1)


def sharpness(config: Config, length: int) -> Tensor:
    """Return what queries are multiplied with: log keys / log trained, at least 1, (length, 1)."""
    keys = torch.arange(1, length + 1) if config.causal else torch.full((length,), length)
    return (keys.log() / math.log(config.trained)).clamp_min(1.0)[:, None]
