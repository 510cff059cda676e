r"""The Transformer of 2017: an encoder and a decoder, norms after each sublayer.

Vaswani et al. 2017, arXiv:1706.03762. Each sublayer is ``LayerNorm(x + Sublayer(x))``. Source,
target and the logits share one table of embeddings, multiplied by sqrt(D) where it embeds (section
3.4). Attention has no biases, as in the authors' code; the feed-forward part has (eq. 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from generative.attention.mixers import SoftmaxAttention, SoftmaxMixer, State
from generative.attention.positions import sinusoidal_positions
from generative.attention.row_dropout import RowDropout, number_places
from generative.attention.softmax import attention

__all__ = ["DecodingState", "Transformer", "TransformerConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Sizes of an encoder-decoder; the defaults are the paper's base model."""

    vocabulary: int = 37_000
    """V, of source and target together."""
    width: int = 512
    """D, of the residual stream."""
    layers: int = 6
    """Of the encoder, and as many of the decoder."""
    heads: int = 8
    hidden: int = 2_048
    """Width of the feed-forward part."""
    most_tokens: int = 1_024
    """Longest source and longest target."""
    dropout: float = 0.0
    """After embeddings and sublayers; 0.1 in the paper."""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads", "hidden", "most_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        if self.width % self.heads or self.width % 2:
            raise ValueError(
                f"width={self.width} with heads={self.heads}: the heads share the features evenly "
                "and positions are pairs of them, so width must be even and divisible by heads"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: give a share from 0 to below 1")

    def build(self) -> Transformer:
        """Return the model with random weights."""
        return Transformer(self)


class CrossAttention(nn.Module):
    """Queries of the target look at keys and values of the encoded source."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def remember(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values ``(B, H, S, K)`` of the encoded source ``(B, S, D)``."""
        return self._split(self.key(memory)), self._split(self.value(memory))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, attend: Tensor) -> Tensor:
        """Return ``(B, T, D)``; ``attend`` is ``(B, 1, 1, S)``, True at tokens of the source."""
        out = attention(self._split(self.query(x)), keys, values, attend=attend)
        mixed: Tensor = self.output(out.transpose(1, 2).flatten(-2))
        return mixed

    def weights(self, x: Tensor, keys: Tensor, attend: Tensor) -> Tensor:
        """Return where each head looks, ``(B, H, T, S)``; rows sum to 1."""
        queries = self._split(self.query(x))
        scores = queries @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
        return torch.softmax(scores.masked_fill(~attend, -torch.inf), -1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Self-attention, then a feed-forward part."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.mixer = SoftmaxMixer(config.width, SoftmaxAttention(heads=config.heads))
        self.mixer_norm = nn.LayerNorm(config.width)
        self.mixer_dropout = RowDropout(config.dropout)
        self.inner = _feed_forward(config)
        self.inner_norm = nn.LayerNorm(config.width)
        self.inner_dropout = RowDropout(config.dropout)

    def forward(self, x: Tensor, attend: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Return ``(B, S, D)``."""
        x = self.mixer_norm(x + self.mixer_dropout(self.mixer(x, attend=attend), seeds))
        out: Tensor = self.inner_norm(x + self.inner_dropout(self.inner(x), seeds))
        return out


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the source, then a feed-forward part."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.mixer = SoftmaxMixer(config.width, SoftmaxAttention(heads=config.heads))
        self.mixer_norm = nn.LayerNorm(config.width)
        self.cross = CrossAttention(config.width, config.heads)
        self.cross_norm = nn.LayerNorm(config.width)
        self.cross_dropout = RowDropout(config.dropout)
        self.mixer_dropout = RowDropout(config.dropout)
        self.inner = _feed_forward(config)
        self.inner_norm = nn.LayerNorm(config.width)
        self.inner_dropout = RowDropout(config.dropout)

    def forward(
        self, x: Tensor, memory: Tensor, attend: Tensor, seeds: Tensor | None = None
    ) -> Tensor:
        """Return ``(B, T, D)`` of whole targets, given the encoded source ``(B, S, D)``."""
        x = self.looking(x, self.mixer(x, causal=True), seeds)
        return self.finish(x, self.cross.remember(memory), attend, seeds)

    def looking(self, x: Tensor, mixed: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Return what looks at the source, ``(B, T, D)``, given the mixed target."""
        out: Tensor = self.mixer_norm(x + self.mixer_dropout(mixed, seeds))
        return out

    def finish(
        self,
        x: Tensor,
        memory: tuple[Tensor, Tensor],
        attend: Tensor,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Return the layer's output, given what ``looking`` and ``cross.remember`` returned."""
        x = self.cross_norm(x + self.cross_dropout(self.cross(x, *memory, attend), seeds))
        out: Tensor = self.inner_norm(x + self.inner_dropout(self.inner(x), seeds))
        return out


class DecodingState:
    """An encoded source and the targets so far, for B rows."""

    def __init__(
        self,
        targets: Sequence[State],
        memories: Sequence[tuple[Tensor, Tensor]],
        attend: Tensor,
    ) -> None:
        self.targets, self.memories, self.attend = list(targets), list(memories), attend

    @property
    def length(self) -> int:
        """Tokens of the target so far."""
        return self.targets[0].length

    @property
    def nbytes(self) -> int:
        """Bytes of caches and of keys and values of the source."""
        held = sum(keys.nbytes + values.nbytes for keys, values in self.memories)
        return held + sum(state.nbytes for state in self.targets)

    def repeat(self, count: int) -> None:
        """Take each row ``count`` times: row r becomes ``r * count`` and those that follow."""
        rows = torch.arange(len(self.attend), device=self.attend.device)
        self.select(rows.repeat_interleave(count))

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, ``(R,)`` int64, in that order."""
        self.attend = self.attend[rows]
        self.memories = [(keys[rows], values[rows]) for keys, values in self.memories]
        for state in self.targets:
            state.select(rows)


class Transformer(nn.Module):
    """An encoder-decoder from tokens to logits.

    >>> model = Transformer(TransformerConfig(vocabulary=8, width=16, layers=1, heads=2, hidden=32))
    >>> model(torch.tensor([[1, 2, 3]]), torch.tensor([[0, 3]])).shape
    torch.Size([1, 2, 8])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.source_dropout = RowDropout(config.dropout)
        self.target_dropout = RowDropout(config.dropout)
        number_places(self)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        *,
        source_mask: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of what follows each token of the target, ``(B, T, V)``.

        Padding of the target needs no mask: it stands at the end, and no token looks ahead.

        Args:
            source: ``(B, S)`` int64.
            target: ``(B, T)`` int64, beginning with the token that begins every target.
            source_mask: ``(B, S)`` bool, False at padding; None has none.
            seeds: ``(B,)`` int64, what the dropout of each row follows from, whatever rows are
                with it; None draws from torch's global state.

        Raises:
            ValueError: A sequence is longer than ``most_tokens``, or a mask has another shape.
        """
        memory, attend = self.encode(source, source_mask, seeds)
        x = self.target_dropout(self._embedded("target", target, 0), seeds)
        for layer in self.decoder:
            x = layer(x, memory, attend, seeds)
        return self._logits(x)

    def encode(
        self, source: Tensor, source_mask: Tensor | None = None, seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the encoded source ``(B, S, D)`` and its tokens' mask, ``(B, 1, 1, S)``."""
        mask = _checked_mask(source, source_mask)
        attend = mask[:, None, None]
        x = self.source_dropout(self._embedded("source", source, 0), seeds)
        for layer in self.encoder:
            x = layer(x, attend, seeds)
        return x, attend

    def new_state(
        self, source: Tensor, columns: int, *, source_mask: Tensor | None = None
    ) -> DecodingState:
        """Encode a source once, for targets of at most ``columns`` tokens."""
        memory, attend = self.encode(source, source_mask)
        layers = self._decoder_layers()
        targets = [layer.mixer.new_state(len(source), columns) for layer in layers]
        return DecodingState(targets, [layer.cross.remember(memory) for layer in layers], attend)

    def extend(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Append ``(B, n)`` tokens to the targets; return the logits after each, ``(B, n, V)``."""
        x = self.target_dropout(self._embedded("target", tokens, state.length))
        parts = zip(self._decoder_layers(), state.targets, state.memories, strict=True)
        for layer, own, memory in parts:
            x = layer.looking(x, layer.mixer.extend(x, own))
            x = layer.finish(x, memory, state.attend)
        return self._logits(x)

    @torch.no_grad()
    def attention_maps(
        self, source: Tensor, target: Tensor, *, source_mask: Tensor | None = None
    ) -> Tensor:
        """Return where each head of the decoder looks in the source, ``(layers, B, H, T, S)``."""
        memory, attend = self.encode(source, source_mask)
        x = self.target_dropout(self._embedded("target", target, 0))
        maps = []
        for layer in self._decoder_layers():
            keys, values = layer.cross.remember(memory)
            x = layer.looking(x, layer.mixer(x, causal=True))
            maps.append(layer.cross.weights(x, keys, attend))
            x = layer.finish(x, (keys, values), attend)
        return torch.stack(maps)

    def _decoder_layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.decoder if isinstance(layer, DecoderLayer)]

    def _embedded(self, name: str, tokens: Tensor, start: int) -> Tensor:
        end = start + tokens.shape[1]
        if end > self.config.most_tokens:
            raise ValueError(
                f"{name} has {end} tokens, but most_tokens={self.config.most_tokens}: shorten it, "
                "or make the model with more"
            )
        places = torch.arange(start, end, device=tokens.device)
        added = sinusoidal_positions(places, self.config.width)
        x = self.embedding(tokens) * self.config.width**0.5
        out: Tensor = x + added.to(x.dtype)
        return out

    def _logits(self, x: Tensor) -> Tensor:
        return x @ self.embedding.weight.t()


def _feed_forward(config: TransformerConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(config.width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.width)
    )


def _checked_mask(source: Tensor, source_mask: Tensor | None) -> Tensor:
    if source_mask is None:
        return torch.ones_like(source, dtype=torch.bool)
    if source_mask.dtype != torch.bool or source_mask.shape != source.shape:
        raise ValueError(
            f"source_mask is {source_mask.dtype} of shape {tuple(source_mask.shape)}: expected "
            f"bool of the source's shape {tuple(source.shape)}, True at tokens, False at padding"
        )
    return source_mask
