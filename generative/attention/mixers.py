"""Mixers: what carries information from token to token in a block, all with one protocol.

A mixer is a module on ``(B, T, D)`` without residual or norm: the block adds those. In parallel it
takes whole sequences; with a state it appends tokens, and what it returns is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias, cast, runtime_checkable

import torch
from torch import Tensor, nn

from generative.attention.cache import KeyValues, SlidingKeyValues, StaticKeyValues
from generative.attention.checks import check_attend, check_heads, check_tokens, head_size
from generative.attention.positions import NoPositions, Positions
from generative.attention.softmax import attention

__all__ = [
    "AttentionBiases",
    "HeadNorm",
    "Mixer",
    "MixerConfig",
    "SoftmaxAttention",
    "SoftmaxMixer",
    "State",
]


class State(Protocol):
    """What a mixer knows of the tokens so far, for B rows."""

    @property
    def length(self) -> int:
        """Tokens so far."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that its tensors take."""
        ...

    def repeat(self, count: int) -> None:
        """Take each row ``count`` times: row r becomes ``r * count`` to ``r * count + count - 1``.

        In place.
        """
        ...

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, ``(R,)`` int64, in that order; one may come more than once.

        In place.
        """
        ...


@runtime_checkable
class Mixer(Protocol):
    """Mixes the tokens of a sequence."""

    def __call__(self, x: Tensor, *, causal: bool = False, attend: Tensor | None = None) -> Tensor:
        """Return ``(B, T, D)``, the mixed tokens.

        Args:
            x: ``(B, T, D)``.
            causal: Each token sees itself and those before it alone.
            attend: bool, True where a token may look; broadcasts to ``(B, 1, T, T)``. Linear kinds
                take a mask of keys alone, ``(B, 1, 1, T)``.
        """
        ...

    def new_state(self, rows: int, columns: int) -> State:
        """Return the state before any token, of ``rows`` sequences of at most ``columns`` tokens.

        Kinds whose state does not grow take any number of tokens.
        """
        ...

    def extend(self, x: Tensor, state: State) -> Tensor:
        """Append ``(B, n, D)`` causally after what ``state`` holds, and update it in place.

        Tokens appended together give what they give one by one.
        """
        ...


class MixerConfig(Protocol):
    """A kind of mixer, as a config holds it."""

    @property
    def is_gated_unit(self) -> bool:
        """Whether the mixer stands in for attention and MLP together, two of it for both."""
        ...

    def build(self, width: int) -> nn.Module:
        """Return a ``Mixer`` of D = ``width`` features."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionBiases:
    """Which projections of an attention have biases. By default none has: none is missed.

    With softmax and without rotary positions, two of them change nothing that the others cannot:
    the **key** bias adds the same number to all scores of a query, which softmax cancels exactly;
    the **value** bias adds a constant to the result, because the weights sum to 1, so it is an
    output bias (but one that a row that may look nowhere does not get). The **query** bias scores
    keys by their content alone, whatever the query. The **output** bias is added to every token,
    also to those that may look nowhere: their result is then the bias, not 0.
    """

    query: bool = False
    key: bool = False
    value: bool = False
    output: bool = False


Attention: TypeAlias = Callable[..., Tensor]
"""Takes q, k, v, ``attend``, ``causal``, and ``bias`` where the positions have one."""


NewCache: TypeAlias = Callable[..., KeyValues]
"""Makes one layer's cache, given rows, heads, columns, width, dtype and device:
``cache.StaticKeyValues`` or ``cache.QuantizedKeyValues``."""


class HeadNorm(nn.RMSNorm):
    """RMSNorm of each head in the precision of its weight; the result has that of its input.

    Under autocast the two differ, and torch's fused norm takes them alike alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(..., K)``."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class SoftmaxMixer(nn.Module):
    r"""Multi-head attention: o_i = sum_j softmax_j(q_i . k_j / sqrt(K)) v_j, then a projection.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.2; grouped queries as in Ainslie et al. 2023,
    arXiv:2305.13245. Its arguments are the fields of ``SoftmaxAttention``.
    """

    def __init__(self, width: int, config: SoftmaxAttention) -> None:
        super().__init__()
        heads, key_heads = config.heads, config.key_heads or config.heads
        self.width, self.heads, self.key_heads = width, heads, key_heads
        self.head_size = head_size(width, heads)
        self.attention, self.window = config.attention, config.window
        self.cache = config.cache
        biases, inner = config.biases, key_heads * self.head_size
        self.query = nn.Linear(width, width, bias=biases.query)
        self.key = nn.Linear(width, inner, bias=biases.key)
        self.value = nn.Linear(width, inner, bias=biases.value)
        self.output = nn.Linear(width, width, bias=biases.output)
        normed = config.query_key_norm
        self.query_norm = HeadNorm(self.head_size, eps=1e-6) if normed else nn.Identity()
        self.key_norm = HeadNorm(self.head_size, eps=1e-6) if normed else nn.Identity()
        self.positions = config.positions.build(heads, self.head_size)

    def forward(self, x: Tensor, *, causal: bool = False, attend: Tensor | None = None) -> Tensor:
        """Return ``(B, T, D)``; see ``Mixer``."""
        places = torch.arange(x.shape[1], device=x.device)
        q, k, v = self._heads(x, places)
        if self.window is not None:
            near = (places[:, None] - places).abs() < self.window
            attend = near if attend is None else check_attend(attend, q, k) & near
        return self._attended(q, k, v, places, places, attend=attend, causal=causal)

    def new_state(self, rows: int, columns: int) -> State:
        """Return an empty cache with room for ``columns`` tokens, or for a window of any."""
        weight = self.query.weight
        if self.cache is None and self.window is not None:
            return SlidingKeyValues(
                rows=rows,
                heads=self.key_heads,
                window=self.window,
                width=self.head_size,
                dtype=weight.dtype,
                device=weight.device,
            )
        return (self.cache or StaticKeyValues)(
            rows=rows,
            heads=self.key_heads,
            columns=columns,
            width=self.head_size,
            dtype=weight.dtype,
            device=weight.device,
        )

    def extend(self, x: Tensor, state: State) -> Tensor:
        """Return ``(B, n, D)`` of the appended tokens; see ``Mixer``."""
        cache = cast(KeyValues, state)
        places = torch.arange(cache.length, cache.length + x.shape[1], device=x.device)
        q, k, v = self._heads(x, places)
        keys, values = cache.append(k, v)
        end, there = cache.length, keys.shape[2]
        key_places = torch.arange(end - there, end, device=x.device)
        attend = None
        if len(places) > 1 or (self.window is not None and there > self.window):
            distances = places[:, None] - key_places
            attend = distances >= 0
            if self.window is not None:
                attend &= distances < self.window
        keys, values = keys.to(q.dtype), values.to(q.dtype)  # autocast leaves a cache as it is
        return self._attended(q, keys, values, places, key_places, attend=attend, causal=False)

    def _heads(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, ``(B, H or H_kv, T, K)``, turned to their places."""
        check_tokens(x, self.query.in_features)
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.key(x).unflatten(-1, (self.key_heads, -1)).transpose(1, 2)
        v = self.value(x).unflatten(-1, (self.key_heads, -1)).transpose(1, 2)
        q = self.positions.turn(self.query_norm(q), places)
        return q, self.positions.turn(self.key_norm(k), places), v

    def _attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        places: Tensor,
        key_places: Tensor,
        *,
        attend: Tensor | None,
        causal: bool,
    ) -> Tensor:
        bias = self.positions.bias(places, key_places)
        if bias is None:
            out = self.attention(q, k, v, attend=attend, causal=causal)
        else:
            out = self.attention(q, k, v, attend=attend, causal=causal, bias=bias)
        mixed: Tensor = self.output(out.transpose(1, 2).flatten(-2))
        return mixed


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftmaxAttention:
    """Multi-head softmax attention."""

    is_gated_unit: ClassVar[bool] = False
    heads: int = 8
    key_heads: int | None = None
    """H_kv, of keys and values; it divides ``heads``. None takes as many."""
    positions: Positions = field(default_factory=NoPositions)
    attention: Attention = attention
    """Which implementation: ``softmax.attention`` or ``flash.flash_attention``."""
    query_key_norm: bool = False
    """RMSNorm each head of queries and keys (Dehghani et al. 2023, arXiv:2302.05442): scores are
    bounded, so training stays stable at greater rates."""
    biases: AttentionBiases = field(default_factory=AttentionBiases)
    window: int | None = None
    """Most tokens that a token sees, itself among them; None has no limit."""
    cache: NewCache | None = None
    """How keys and values are kept while it generates. None keeps all of them, or with a window
    the last ones in constant memory; ``cache.QuantizedKeyValues`` keeps all in int8."""

    def __post_init__(self) -> None:
        check_heads(self.heads, self.key_heads)
        if self.window is not None and self.window < 1:
            raise ValueError(
                f"window={self.window}: a token sees at least itself; None is no limit"
            )

    def build(self, width: int) -> nn.Module:
        """Return a ``SoftmaxMixer``."""
        return SoftmaxMixer(width, self)
