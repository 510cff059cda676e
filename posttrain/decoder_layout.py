"""Laying sequences end to end: which tokens are computed, and where each lies for attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Block", "Heads", "Layout", "rounded", "sequences", "shared_sequences"]


@dataclass(frozen=True, slots=True)
class Heads:
    """How a row of ``(H + 2 H_kv) K`` features splits into queries, keys and values."""

    queries: int
    keys: int
    width: int
    scale: float
    """Multiplies the scores, usually ``K ** -0.5``."""

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(S, T, H_kv, H / H_kv, K)`` queries and ``(S, T, H_kv, K)`` keys and values."""
        n, m, k = self.queries * self.width, self.keys * self.width, self.width
        queries = qkv[..., :n].unflatten(-1, (self.keys, -1, k))
        keys, values = qkv[..., n : n + m], qkv[..., n + m :]
        return queries, keys.unflatten(-1, (-1, k)), values.unflatten(-1, (-1, k))


@dataclass(frozen=True, slots=True)
class Block:
    """Sequences side by side, padded on the right to the same length T."""

    tokens: Tensor
    """``(S, T)`` int64: where each slot's token lies among the N; padding points anywhere."""
    lengths: Tensor
    """``(S,)`` int64: slots of each sequence that are not padding."""
    padding: Tensor
    """Flat indices of the padding slots; empty where all sequences have length T."""
    start: int | None
    """Where the block begins if it is a plain run of the N tokens; None if it must be gathered."""
    prefix: int | None = None
    """The earlier block whose sequence s // G is what this block's sequence s continues."""

    def gather(self, rows: Tensor) -> Tensor:
        """Return ``(S, T, F)`` of the ``(N, F)`` rows; padding slots hold anything finite."""
        s, t = self.tokens.shape
        if self.start is not None:
            return rows[self.start : self.start + s * t].view(s, t, -1)
        return rows.index_select(0, self.tokens.view(-1)).view(s, t, -1)

    def bias(self, like: Tensor) -> Tensor | None:
        """Return ``(S, 1, 1, T)``: 0 at tokens, -inf at padding; None without padding."""
        if not len(self.padding):
            return None
        bias = like.new_zeros(self.tokens.shape)
        bias.view(-1)[self.padding] = -torch.inf
        return bias[:, None, None]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every sequence lies among N tokens."""

    blocks: tuple[Block, ...]
    slots: Tensor | None
    """``(N,)`` int64: each token's slot, counted over the blocks one after another; None where
    the blocks are the N tokens in order."""
    real: int
    """Tokens from here on belong to no sequence; they only round N up."""
    longest: int
    """Most tokens that a query may look back over, itself included."""

    def ungather(self, parts: Sequence[Tensor]) -> Tensor:
        """Return ``(N, F)`` rows from the blocks' ``(S, T, F)``."""
        flat = [part.reshape(-1, part.shape[-1]) for part in parts]
        rows = flat[0] if len(flat) == 1 else torch.cat(flat)
        return rows if self.slots is None else rows.index_select(0, self.slots)


def rounded(count: int) -> int:
    """Return ``count`` rounded up by at most 1/16, so that few different sizes occur.

    Matrix kernels are built once per size; sizes that hardly ever repeat would build anew in
    every step.

    >>> [rounded(n) for n in (0, 1, 16, 100, 1000, 4097)]
    [0, 16, 16, 112, 1024, 4352]
    """
    step = max(16, 1 << max(0, count.bit_length() - 5))
    return -(-count // step) * step


def sequences(lengths: Tensor) -> Layout:
    """Lay out sequences of ``(S,)`` positive lengths that lie end to end, each on its own.

    Sequences whose lengths differ by more than a factor of two go into blocks of their own, so
    that at least half of the slots that attention computes are tokens.
    """
    starts = lengths.cumsum(0) - lengths
    longest = int(lengths.max())
    blocks = []
    top = longest
    while top > 0:
        chosen = ((lengths <= top) & (lengths > top // 2)).nonzero().view(-1)
        if len(chosen) == 0:
            top //= 2
            continue
        blocks.append(_block(starts[chosen], lengths[chosen]))
        top //= 2
    return _layout(tuple(blocks), int(lengths.sum()), longest)


def shared_sequences(prompt_lengths: Tensor, lengths: Tensor) -> Layout:
    """Lay out P prompts end to end and after them, end to end, what continues each of them.

    Args:
        prompt_lengths: ``(P,)``, positive.
        lengths: ``(P G,)``, of continuation g of prompt p at ``p * G + g``; 0 is none.
    """
    total = int(prompt_lengths.sum())
    longest = prompt_lengths.repeat_interleave(len(lengths) // len(prompt_lengths)) + lengths
    blocks = [_block(prompt_lengths.cumsum(0) - prompt_lengths, prompt_lengths)]
    if int(lengths.max()) > 0:
        blocks.append(_block(total + lengths.cumsum(0) - lengths, lengths, prefix=0))
    return _layout(tuple(blocks), total + int(lengths.sum()), int(longest.max()))


def _block(starts: Tensor, lengths: Tensor, prefix: int | None = None) -> Block:
    longest = int(lengths.max())
    place = torch.arange(longest, device=starts.device)
    padded = place >= lengths[:, None]
    tokens = (starts[:, None] + place).masked_fill_(padded, 0)
    padding = padded.view(-1).nonzero().view(-1)
    in_order = len(padding) == 0 and bool((starts.diff() == longest).all())
    return Block(
        tokens=tokens,
        lengths=lengths,
        padding=padding,
        start=int(starts[0]) if in_order else None,
        prefix=prefix,
    )


def _layout(blocks: tuple[Block, ...], real: int, longest: int) -> Layout:
    """Join blocks; a rest of spare tokens rounds their number up."""
    count = rounded(real)
    slots = torch.zeros(count, dtype=torch.int64, device=blocks[0].tokens.device)
    before, in_order = 0, True
    for block in blocks:
        in_order &= block.start == before
        flat = block.tokens.view(-1)
        slot = torch.arange(before, before + len(flat), device=flat.device)
        if len(block.padding):
            known = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
            known[block.padding] = False
            flat, slot = flat[known], slot[known]
        slots[flat] = slot
        before += block.tokens.numel()
    in_order &= before == count
    return Layout(blocks=blocks, slots=None if in_order else slots, real=real, longest=longest)
