r"""Gated attention units and FLASH, "Transformer Quality in Linear Time" (Hua et al. 2022).

arXiv:2202.10447. A unit stands in for attention and feed-forward layer together:

    u, v = SiLU(x W_u), SiLU(x W_v)      (B, T, E), gates and values, E = expansion D
    z    = SiLU(x W_z)                   (B, T, S), shared by queries and keys
    q, k = scale_q z + offset_q, ...     each use with its own scale and offset
    out  = (u * mix(q, k, v)) W_o

``GAU`` mixes all pairs of tokens by ``relu(q . k)^2``: no softmax, so one head of S = 128 features
is enough. ``FLASH`` mixes so within chunks and linearly across them: O(T) time, constant state.

The paper divides scores by T, which makes what a token sees depend on tokens to come. Here scores
are multiplied by constants instead, ``1 / sqrt(S)``, and across chunks ``1 / (C sqrt(S))``, which
keep outputs of order 1 at the start of training for hundreds to thousands of tokens. So outputs
never depend on T, and decoding token by token gives what the parallel pass gives. Input and output
projections have no biases; a token that may look nowhere is exactly 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.attention.checks import (
    accumulated,
    allowed,
    check_key_mask,
    check_tokens,
    checked,
    checked_scale,
    repeat_heads,
)
from generative.attention.gau_states import FLASHState, GAUState
from generative.attention.positions import NoPositions, Positions

__all__ = ["FLASH", "GAU", "flash_mixing", "squared_relu_attention"]


def squared_relu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attend: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    r"""Attention by squared ReLU, without softmax (arXiv:2202.10447, section 2).

        o_t = sum_s relu(scale q_t . k_s)^2 v_s,    over the keys s that t may look at

    A plain sum, never divided by the number of tokens. Memory is O(T_q T_k).

    Args:
        q: ``(B, H, T_q, K)``.
        k: ``(B, H_kv, T_k, K)``; H is a multiple of H_kv.
        v: ``(B, H_kv, T_k, K_v)``.
        attend: bool, True = may look, broadcastable to ``(B, H, T_q, T_k)``.
        causal: Query i looks at keys up to i alone; for T_q = T_k. Holds besides ``attend``.
        scale: None is ``1 / sqrt(K)``.

    Returns:
        ``(B, H, T_q, K_v)``, dtype of ``q``; sums are float32 for half precision.

    Raises:
        TypeError, ValueError: If an argument does not fit; the message names it.

    >>> q = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1)
    >>> v = torch.tensor([1.0, 10.0]).view(1, 1, 2, 1)
    >>> squared_relu_attention(q, q, v, causal=True, scale=1.0).flatten()  # 1; 2^2 + 10 4^2
    tensor([  1., 164.])
    """
    q, k, v, attend = checked(q, k, v, attend=attend, causal=causal)
    mask = allowed(attend, causal, q, k)
    exact = accumulated(q.dtype)
    keys, values = (repeat_heads(x.to(exact), q.shape[1]) for x in (k, v))
    scores = (checked_scale(scale, q) * q.to(exact)) @ keys.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, 0.0)
    return (F.relu(scores).square() @ values).to(q.dtype)


def flash_mixing(
    quad_q: Tensor,
    quad_k: Tensor,
    lin_q: Tensor,
    lin_k: Tensor,
    v: Tensor,
    *,
    chunk: int,
    causal: bool = False,
    attend: Tensor | None = None,
    quad_scale: float | None = None,
    lin_scale: float | None = None,
) -> Tensor:
    r"""Mixed chunk attention (arXiv:2202.10447, section 3): FLASH between its projections.

        o_t = sum_{s in t's chunk} relu(quad_scale quad_q_t . quad_k_s)^2 v_s
              + lin_scale lin_q_t . sum_s lin_k_s v_s^T

    The last sum is over the tokens of all chunks; causal, over those of earlier chunks, and the
    first over s <= t. Memory is O(T C + T S E / C); no (T, T) tensor.

    Args:
        quad_q: ``(B, T, S)``, queries within a chunk.
        quad_k: ``(B, T, S)``, keys within a chunk.
        lin_q: ``(B, T, S)``, queries across chunks.
        lin_k: ``(B, T, S)``, keys across chunks.
        v: ``(B, T, E)``, values of both.
        chunk: C, tokens of a chunk; part of the model. The last chunk may be shorter.
        causal: Tokens see those before them and themselves.
        attend: bool, True = may be looked at, broadcastable to ``(B, 1, 1, T)``: a mask of keys.
        quad_scale: None is ``1 / sqrt(S)``.
        lin_scale: None is ``1 / (C sqrt(S))``.

    Returns:
        ``(B, T, E)``, dtype of ``v``; sums are float32 for half precision.

    Raises:
        TypeError, ValueError: If an argument does not fit; the message names it.
    """
    attend = check_mixing(quad_q, quad_k, lin_q, lin_k, v, chunk, attend)
    quad_scale, lin_scale = mixing_scales(quad_q.shape[2], chunk, quad_scale, lin_scale)
    dtype, length = v.dtype, v.shape[1]
    quad_q, quad_k, lin_q, lin_k, v = (
        x.to(accumulated(dtype)) for x in (quad_q, quad_k, lin_q, lin_k, v)
    )
    if attend is not None:
        hidden = ~attend.squeeze(1).mT  # (B|1, T|1, 1)
        quad_k, lin_k, v = (x.masked_fill(hidden, 0.0) for x in (quad_k, lin_k, v))
    size = min(chunk, length)
    spare = -length % size  # tokens of zeros, which score 0
    if spare:
        quad_q, quad_k, lin_q, lin_k, v = (
            F.pad(x, (0, 0, 0, spare)) for x in (quad_q, quad_k, lin_q, lin_k, v)
        )
    quad_q, quad_k, lin_q, lin_k, v = (
        x.unflatten(1, (-1, size)) for x in (quad_q, quad_k, lin_q, lin_k, v)
    )
    weights = F.relu((quad_scale * quad_q) @ quad_k.mT).square()
    if causal:
        weights = weights.tril()
    out = weights @ v
    if not causal:
        out = out + (lin_scale * lin_q) @ (lin_k.mT @ v).sum(1, keepdim=True)
    elif v.shape[1] > 1:
        # Sums before each chunk. Not sums with it, less its own: that would round by the future.
        before = (lin_k[:, :-1].mT @ v[:, :-1]).cumsum(1)
        out = out + (lin_scale * lin_q) @ F.pad(before, (0, 0, 0, 0, 1, 0))
    return out.flatten(1, 2)[:, :length].to(dtype)


def mixing_scales(
    key_size: int, chunk: int, quad_scale: float | None, lin_scale: float | None
) -> tuple[float, float]:
    """Return the scales, ``1 / sqrt(S)`` and ``1 / (C sqrt(S))`` in the place of None."""
    usual = 1.0 / math.sqrt(key_size)
    return (
        usual if quad_scale is None else quad_scale,
        usual / chunk if lin_scale is None else lin_scale,
    )


def check_mixing(
    quad_q: Tensor,
    quad_k: Tensor,
    lin_q: Tensor,
    lin_k: Tensor,
    v: Tensor,
    chunk: int,
    attend: Tensor | None,
) -> Tensor | None:
    named = {"quad_q": quad_q, "quad_k": quad_k, "lin_q": lin_q, "lin_k": lin_k, "v": v}
    for name, x in named.items():
        if x.dim() != 3:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected three axes (B, T, S)")
        same = v.shape[:2] if name == "v" else (*v.shape[:2], quad_q.shape[2])
        if x.shape[: len(same)] != same:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}, expected {tuple(same)}: (B, T) of v, S of "
                "quad_q; tokens mix with themselves, so all have as many"
            )
    if v.shape[1] == 0:
        raise ValueError("v has T=0: there is no token to mix; leave the call out")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: a chunk has at least 1 token")
    if attend is None:
        return None
    return check_key_mask(attend, quad_q[:, None], quad_k[:, None])


class _Unit(nn.Module):
    """Projections of a gated unit, with ``uses`` queries and keys made of the shared z."""

    def __init__(
        self, d: int, expansion: int, key_size: int, uses: int, positions: Positions
    ) -> None:
        super().__init__()
        for name, size in (("d", d), ("expansion", expansion), ("key_size", key_size)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}={size}, expected a whole number from 1 up")
        self.d, self.inner, self.key_size = d, expansion * d, key_size
        self.input = nn.Linear(d, 2 * self.inner + key_size, bias=False)
        self.output = nn.Linear(self.inner, d, bias=False)
        self.scales = nn.Parameter(torch.ones(uses, key_size))
        self.offsets = nn.Parameter(torch.zeros(uses, key_size))
        self.positions = positions.build(1, key_size)
        place = torch.zeros(1, dtype=torch.int64)
        if self.positions.bias(place, place) is not None:
            raise ValueError(
                f"positions={positions} adds a bias to the scores, which gated units do not take; "
                "use positions that turn queries and keys, such as Rotary"
            )

    def project(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return gates, values ``(B, T, E)`` and, of each use, ``(B, T, S)`` at its place.

        ``start`` is the place of the first token.
        """
        check_tokens(x, self.d)
        parts = F.silu(self.input(x)).split((self.inner, self.inner, self.key_size), -1)
        places = torch.arange(start, start + x.shape[1], device=x.device)
        uses = parts[2][:, None] * self.scales[:, None] + self.offsets[:, None]  # (B, uses, T, S)
        turned = self.positions.turn(uses, places).to(parts[2].dtype)  # as values under autocast
        return parts[0], parts[1], list(turned.unbind(1))


class GAU(_Unit):
    r"""Gated attention unit, quadratic (arXiv:2202.10447, section 2): see the module's page.

        out = (u * sum_s relu(q . k_s / sqrt(S))^2 v_s) W_o

    Without positions it is equivariant to permutations. Its state grows with the tokens.

    Args:
        d: D, features of a token.
        expansion: E / D. Two units of expansion 2 have about the parameters of attention with a
            feed-forward layer of 4 D.
        key_size: S, features of queries and keys.
        positions: Turns queries and keys, such as ``Rotary``.
    """

    def __init__(
        self,
        d: int,
        expansion: int = 2,
        key_size: int = 128,
        *,
        positions: Positions | None = None,
    ) -> None:
        super().__init__(d, expansion, key_size, 2, positions or NoPositions())

    def forward(self, x: Tensor, *, causal: bool = False, attend: Tensor | None = None) -> Tensor:
        """Return ``(B, T, D)``.

        Args:
            x: ``(B, T, D)``.
            causal: Each token sees itself and those before it alone.
            attend: bool, True where a token may look; broadcasts to ``(B, 1, T, T)``.
        """
        u, v, (q, k) = self.project(x, 0)
        mixed = squared_relu_attention(
            q[:, None], k[:, None], v[:, None], attend=attend, causal=causal
        )
        return self.output(u * mixed[:, 0])

    def new_state(self, rows: int, columns: int) -> GAUState:
        """Return the state before any token; ``rows`` sequences of at most ``columns`` tokens."""
        weight = self.output.weight
        return GAUState(
            weight.new_zeros(rows, columns, self.key_size),
            weight.new_zeros(rows, columns, self.inner),
        )

    def extend(self, x: Tensor, state: GAUState) -> Tensor:
        """Append ``(B, n, D)`` causally after what ``state`` holds, and update it in place."""
        start = state.length
        u, v, (q, k) = self.project(x, start)
        keys, values = state.append(k, v)
        attend = _up_to(start, state.length, x.device)
        mixed = squared_relu_attention(
            q[:, None], keys[:, None].to(q.dtype), values[:, None].to(q.dtype), attend=attend
        )
        return self.output(u * mixed[:, 0])


class FLASH(_Unit):
    r"""Gated attention unit with mixed chunk attention (arXiv:2202.10447, section 3).

        out = (u * flash_mixing(quad_q, quad_k, lin_q, lin_k, v)) W_o

    Time is linear in T; the state has constant size, whatever the number of tokens. Where a chunk
    ends is seen by the tokens, so it is not equivariant to permutations.

    Args:
        d: D, features of a token.
        expansion: E / D.
        key_size: S, features of queries and keys.
        chunk: C, tokens of a chunk, within which mixing is quadratic.
        positions: Turns queries and keys, such as ``Rotary``.
    """

    def __init__(
        self,
        d: int,
        expansion: int = 2,
        key_size: int = 128,
        chunk: int = 256,
        *,
        positions: Positions | None = None,
    ) -> None:
        super().__init__(d, expansion, key_size, 4, positions or NoPositions())
        if chunk < 1:
            raise ValueError(f"chunk={chunk}: a chunk has at least 1 token")
        self.chunk = chunk

    def forward(self, x: Tensor, *, causal: bool = False, attend: Tensor | None = None) -> Tensor:
        """Return ``(B, T, D)``.

        Args:
            x: ``(B, T, D)``.
            causal: Each token sees itself and those before it alone.
            attend: bool, a mask of keys, True = may be looked at: broadcasts to ``(B, 1, 1, T)``.
        """
        u, v, (quad_q, quad_k, lin_q, lin_k) = self.project(x, 0)
        return self.output(
            u
            * flash_mixing(
                quad_q, quad_k, lin_q, lin_k, v, chunk=self.chunk, causal=causal, attend=attend
            )
        )

    def new_state(self, rows: int, columns: int) -> FLASHState:
        """Return the state before any token; ``rows`` sequences of any number of tokens."""
        weight = self.output.weight
        return FLASHState(
            weight.new_zeros(rows, self.key_size, self.inner, dtype=accumulated(weight.dtype)),
            weight.new_zeros(rows, self.chunk, self.key_size),
            weight.new_zeros(rows, self.chunk, self.key_size),
            weight.new_zeros(rows, self.chunk, self.inner),
        )

    def extend(self, x: Tensor, state: FLASHState) -> Tensor:
        """Append ``(B, n, D)`` causally after what ``state`` holds, and update it in place."""
        u, v, uses = self.project(x, state.length)
        _, lin_scale = mixing_scales(self.key_size, self.chunk, None, None)
        mixed, done = [], 0
        while done < x.shape[1]:
            span = slice(done, done + state.room)
            quad_q, quad_k, lin_q, lin_k = (use[:, span] for use in uses)
            first = state.length % self.chunk
            memory, keys, values = state.append(quad_k, lin_k, v[:, span])
            near = squared_relu_attention(
                quad_q[:, None],
                keys[:, None].to(quad_q.dtype),
                values[:, None].to(quad_q.dtype),
                attend=_up_to(first, keys.shape[1], x.device),
            )
            far = lin_scale * (lin_q.to(memory.dtype) @ memory)
            mixed.append((near[:, 0] + far).to(x.dtype))
            done += quad_q.shape[1]
        return self.output(u * torch.cat(mixed, 1))


def _up_to(start: int, end: int, device: torch.device) -> Tensor | None:
    """Return which of ``end`` keys queries ``start`` to ``end - 1`` look at; None: one, at all."""
    if end - start == 1:
        return None
    places = torch.arange(end, device=device)
    return places <= places[start:, None]
