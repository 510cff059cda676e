"""The gated delta rule as a mixer: a memory of constant size that overwrites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.attention.checks import (
    accumulated,
    check_heads,
    check_key_mask,
    check_tokens,
    head_size,
)
from generative.attention.delta import gated_delta_rule_chunked
from generative.attention.mixers import HeadNorm, State

__all__ = ["DeltaMemory", "DeltaMixer", "DeltaRule"]


class DeltaMemory:
    """What each head's memory holds, ``(B, H, K, K)``, and the number of tokens so far."""

    __slots__ = ("held", "length")

    def __init__(self, held: Tensor) -> None:
        self.held = held
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the memory; it does not grow."""
        return self.held.nbytes

    def repeat(self, count: int) -> None:
        """Take each row ``count`` times: row r becomes ``r * count`` and those that follow."""
        self.held = self.held.repeat_interleave(count, 0)

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, ``(R,)`` int64, in that order."""
        self.held = self.held[rows]


class DeltaMixer(nn.Module):
    r"""Gated DeltaNet's mixer (Yang et al. 2024, arXiv:2412.06464), without its convolutions.

        q, k of length 1;    beta = sigmoid(x W_b);    log alpha = -softplus(x W_a - 4)

    and what each head reads is RMS-normed. It is causal by nature. Its arguments are the fields of
    ``DeltaRule``.
    """

    def __init__(self, width: int, config: DeltaRule) -> None:
        super().__init__()
        self.heads, self.chunk = config.heads, config.chunk
        self.head_size = head_size(width, config.heads)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.write = nn.Linear(width, config.heads, bias=False)
        self.fade = nn.Linear(width, config.heads, bias=False) if config.decays else None
        self.norm = HeadNorm(self.head_size, eps=1e-6)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, *, causal: bool = False, attend: Tensor | None = None) -> Tensor:
        """Return ``(B, T, D)``; see ``Mixer``. ``attend`` is a mask of keys, ``(B, 1, 1, T)``."""
        if not causal:
            raise ValueError(
                "causal=False: the delta rule writes token after token, so it has no form in which "
                "tokens see those after them; pass causal=True, or take another mixer"
            )
        out, _ = self._read(x, None, attend)
        return out

    def new_state(self, rows: int, columns: int) -> State:
        """Return an empty memory; ``columns`` plays no part."""
        weight = self.query.weight
        shape = (rows, self.heads, self.head_size, self.head_size)
        return DeltaMemory(weight.new_zeros(shape, dtype=accumulated(weight.dtype)))

    def extend(self, x: Tensor, state: State) -> Tensor:
        """Return ``(B, n, D)`` of the appended tokens; see ``Mixer``."""
        memory = cast(DeltaMemory, state)
        out, memory.held = self._read(x, memory.held, None)
        memory.length += x.shape[1]
        return out

    def _read(self, x: Tensor, held: Tensor | None, attend: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ``(B, T, D)`` and the memory after the last token."""
        check_tokens(x, self.query.in_features)
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        beta = torch.sigmoid(self.write(x)).mT
        logs = None if self.fade is None else -F.softplus(self.fade(x) - 4).mT
        if attend is not None:  # a token that may not be looked at writes nothing and fades nothing
            hidden = ~check_key_mask(attend, q, k)[:, :, 0]
            k, v = (y.masked_fill(hidden[..., None], 0.0) for y in (k, v))
            beta = beta.masked_fill(hidden, 0.0)
            logs = None if logs is None else logs.masked_fill(hidden, 0.0)
        out, held = gated_delta_rule_chunked(
            F.normalize(q, dim=-1, eps=1e-6),
            F.normalize(k, dim=-1, eps=1e-6),
            v,
            beta=beta,
            log_decay=logs,
            state=held,
            chunk=self.chunk,
        )
        mixed: Tensor = self.output(self.norm(out).transpose(1, 2).flatten(-2))
        return mixed, held


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaRule:
    """The gated delta rule, or DeltaNet without ``decays``."""

    is_gated_unit: ClassVar[bool] = False
    heads: int = 8
    decays: bool = True
    """Let each head fade its memory by a factor that each token chooses."""
    chunk: int = 64
    """Tokens that are taken together; speed and memory alone, never the result."""

    def __post_init__(self) -> None:
        check_heads(self.heads)
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}: give at least 1 token")

    def build(self, width: int) -> nn.Module:
        """Return a ``DeltaMixer``."""
        return DeltaMixer(width, self)
