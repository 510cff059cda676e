"""Laying sequences end to end: which tokens are computed, and where each lies for attention."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.decoder_attention import Block, Layout

__all__ = ["rounded", "sequences", "shared_sequences"]


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
    before = 0
    for block in blocks:
        flat = block.tokens.view(-1)
        slot = torch.arange(before, before + len(flat), device=flat.device)
        if len(block.padding):
            known = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
            known[block.padding] = False
            flat, slot = flat[known], slot[known]
        slots[flat] = slot
        before += block.tokens.numel()
    in_order = before == count and all(block.start is not None for block in blocks)
    return Layout(blocks=blocks, slots=None if in_order else slots, real=real, longest=longest)
