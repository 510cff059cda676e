"""Linear attention as a mixer: a state of constant size, whatever the number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from generative.attention.checks import check_heads, check_tokens, head_size
from generative.attention.features import FeatureMap, PositiveRandomFeatures, elu_plus_one
from generative.attention.linear import (
    LinearState,
    linear_attention,
    linear_attention_continued,
)
from generative.attention.linear_blocks import first_state, read_keys
from generative.attention.mixers import HeadNorm, State

__all__ = ["LinearAttention", "LinearMemory", "LinearMixer", "RandomFeatures", "retention_decay"]


def retention_decay(heads: int) -> Tensor:
    r"""Return RetNet's decay of each head, ``gamma_h = 1 - 2^(-5 - h)``, ``(H,)`` float32.

    Sun et al. 2023, arXiv:2307.08621, section 3.1: the first head forgets in tens of tokens, the
    others ever later.

    >>> retention_decay(2).tolist()
    [0.96875, 0.984375]
    """
    return 1 - 2.0 ** (-5 - torch.arange(heads, dtype=torch.float32))


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomFeatures:
    """``features.PositiveRandomFeatures`` for a head, drawn once from ``seed``, never learnt."""

    features: int = 64
    """M, for each head; the variance of the softmax that they estimate falls as 1 / M."""
    seed: int = 0

    def build(self, head_size: int) -> FeatureMap:
        """Return the map for heads of K = ``head_size`` features."""
        generator = torch.Generator().manual_seed(self.seed)
        return PositiveRandomFeatures(head_size, self.features, generator=generator)


class LinearMemory:
    """Sums over the tokens so far, for B rows; see ``linear.LinearState``."""

    __slots__ = ("length", "sums")

    def __init__(self, sums: LinearState) -> None:
        self.sums = sums
        self.length = 0
        """Tokens so far."""

    @property
    def nbytes(self) -> int:
        """Bytes of the sums; they do not grow."""
        return sum(x.nbytes for x in self.sums if x is not None)

    def repeat(self, count: int) -> None:
        """Take each row ``count`` times: row r becomes ``r * count`` and those that follow."""
        rows = torch.arange(len(self.sums.memory), device=self.sums.memory.device)
        self.select(rows.repeat_interleave(count))

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, ``(R,)`` int64, in that order."""
        memory, normalizer, scale = self.sums
        self.sums = LinearState(
            memory[rows], normalizer[rows], None if scale is None else scale[rows]
        )


class LinearMixer(nn.Module):
    r"""Multi-head linear attention: o_t = sum_s w_ts v_s / sum_s w_ts, w_ts = phi(q_t) . phi(k_s).

    Katharopoulos et al. 2020, arXiv:2006.16236. Its arguments are the fields of
    ``LinearAttention``.
    """

    def __init__(self, width: int, config: LinearAttention) -> None:
        super().__init__()
        self.heads, self.key_heads = config.heads, config.key_heads or config.heads
        self.head_size = head_size(width, config.heads)
        self.normalize, self.chunk = config.normalize, config.chunk
        given = config.feature_map
        built = given.build(self.head_size) if isinstance(given, RandomFeatures) else given
        self.feature_map: FeatureMap = built
        self.decays = config.decays
        inner = self.key_heads * self.head_size
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        # A sum grows with the tokens; what divides it, or else this norm, takes that back.
        self.norm = nn.Identity() if self.normalize else HeadNorm(self.head_size, eps=1e-6)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, *, causal: bool = False, attend: Tensor | None = None) -> Tensor:
        """Return ``(B, T, D)``; see ``Mixer``. ``attend`` is a mask of keys, ``(B, 1, 1, T)``."""
        q, k, v = self._heads(x)
        if not causal:
            if self.decays:
                raise ValueError("causal=False, but decays=True: tokens fade by distance back in "
                                 "time, which needs a causal mixer")  # fmt: skip
            out = linear_attention(
                q, k, v, feature_map=self.feature_map, normalize=self.normalize, attend=attend
            )
            return self._joined(out)
        out, _ = linear_attention_continued(
            q,
            k,
            v,
            feature_map=self.feature_map,
            chunk=self.chunk,
            normalize=self.normalize,
            attend=attend,
            decay=self._decay(x),
        )
        return self._joined(out)

    def new_state(self, rows: int, columns: int) -> State:
        """Return sums over nothing; ``columns`` plays no part."""
        weight = self.query.weight
        like = weight.new_zeros((rows, self.heads, 1, self.head_size))
        return LinearMemory(first_state(read_keys(like, like, self.feature_map, None, self.heads)))

    def extend(self, x: Tensor, state: State) -> Tensor:
        """Return ``(B, n, D)`` of the appended tokens; see ``Mixer``."""
        memory = cast(LinearMemory, state)
        q, k, v = self._heads(x)
        out, memory.sums = linear_attention_continued(
            q,
            k,
            v,
            feature_map=self.feature_map,
            state=memory.sums,
            chunk=self.chunk,
            normalize=self.normalize,
            decay=self._decay(x),
        )
        memory.length += x.shape[1]
        return self._joined(out)

    def _decay(self, x: Tensor) -> Tensor | None:
        return retention_decay(self.heads).to(x.device) if self.decays else None

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, ``(B, H or H_kv, T, K)``."""
        check_tokens(x, self.query.in_features)
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.key(x).unflatten(-1, (self.key_heads, -1)).transpose(1, 2)
        v = self.value(x).unflatten(-1, (self.key_heads, -1)).transpose(1, 2)
        return q, k, v

    def _joined(self, out: Tensor) -> Tensor:
        mixed: Tensor = self.output(self.norm(out).transpose(1, 2).flatten(-2))
        return mixed


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearAttention:
    """Multi-head linear attention."""

    is_gated_unit: ClassVar[bool] = False
    heads: int = 8
    key_heads: int | None = None
    """H_kv, of keys and values; it divides ``heads``. None takes as many."""
    feature_map: FeatureMap | RandomFeatures = elu_plus_one
    """phi: ``features.elu_plus_one``, ``features.relu``, any function, or ``RandomFeatures``."""
    normalize: bool = True
    """Divide by the sum of weights. RetNet does not: heads are normed instead."""
    decays: bool = False
    """Let tokens fade as in RetNet, each head at its own ``retention_decay``; causal alone."""
    chunk: int = 64
    """Tokens that are taken together; speed and memory alone, never the result."""

    def __post_init__(self) -> None:
        check_heads(self.heads, self.key_heads)
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}: give at least 1 token")

    def build(self, width: int) -> nn.Module:
        """Return a ``LinearMixer``."""
        return LinearMixer(width, self)
