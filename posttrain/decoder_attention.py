"""Causal attention over sequences of unequal length that lie end to end in one row of tokens.

Linear layers see ``(N, D)`` real tokens and no padding. Only attention needs to know where each
sequence begins: a ``Layout`` says so, once for all layers. A group of sequences may share a
prefix, its prompt, whose keys and values are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from generative.attention.rotary import turn

__all__ = ["Block", "Heads", "Layout", "attend", "attend_densely", "rotate"]

_SMALL_KEYS = 128
_SMALL_SCORES = 1 << 23
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


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


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, turns: Tensor) -> Tensor:
        ctx.save_for_backward(turns)
        return _turned(qkv, turns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (turns,) = ctx.saved_tensors
        return _turned(grad, turns.conj()), None


def _turned(qkv: Tensor, turns: Tensor) -> Tensor:
    n = 2 * turns.shape[1]
    return torch.cat((turn(qkv[:, :n], turns), qkv[:, n:]), dim=1)


def rotate(qkv: Tensor, turns: Tensor) -> Tensor:
    """Turn the queries and keys of ``(N, F)`` rows by ``(N, (H + H_kv) K/2)``; values stay."""
    return _Rotate.apply(qkv, turns)


def attend(qkv: Tensor, heads: Heads, layout: Layout, window: int | None = None) -> Tensor:
    """Causal attention within each sequence, and to its prefix if it has one.

    Args:
        qkv: ``(N, (H + 2 H_kv) K)`` rotated queries, rotated keys, values.
        heads: How a row splits.
        layout: Where the sequences are.
        window: Tokens that a query may look back over, itself included; None is all.

    Returns:
        ``(N, H K)``.
    """
    narrow = window is not None and window < layout.longest
    if qkv.device.type != "cpu" or qkv.dtype not in (torch.float32, torch.float64) or narrow:
        return attend_densely(qkv, heads, layout, window)
    if all(_is_small(block, heads, layout) for block in layout.blocks):
        return _AttendSmall.apply(qkv, heads, layout)
    return _AttendFlash.apply(qkv, heads, layout)


def attend_densely(qkv: Tensor, heads: Heads, layout: Layout, window: int | None = None) -> Tensor:
    """``attend`` in the plainest way: every block with its prefix and a dense mask.

    It is the readable twin, the path of other devices and types, and that of sliding windows.
    """
    parts = [block.gather(qkv) for block in layout.blocks]
    outputs = []
    for block, part in zip(layout.blocks, parts, strict=True):
        (s, t), device = block.tokens.shape, qkv.device
        queries, keys, values = heads.split(part)
        place = torch.arange(t, device=device).expand(s, t)  # of each key in its sequence
        own = place
        known = place < block.lengths[:, None]
        if block.prefix is not None:
            before = layout.blocks[block.prefix]
            _, more_keys, more_values = heads.split(parts[block.prefix])
            group = s // len(before.lengths)
            keys = torch.cat((more_keys.repeat_interleave(group, 0), keys), 1)
            values = torch.cat((more_values.repeat_interleave(group, 0), values), 1)
            ahead = torch.arange(before.tokens.shape[1], device=device)
            length = before.lengths.repeat_interleave(group)[:, None]
            own = place + length
            known = torch.cat((ahead < length, known), 1)
            place = torch.cat((ahead.expand(s, -1), own), 1)
        back = own[:, :, None] - place[:, None]  # (S, T, keys): how far back each key lies
        may = (back >= 0) & known[:, None]
        if window is not None:
            may &= back < window
        may[..., -t:] |= torch.eye(t, dtype=torch.bool, device=device)  # no row without a key
        output = F.scaled_dot_product_attention(
            queries.flatten(2, 3).transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=may[:, None],
            scale=heads.scale,
            enable_gqa=True,
        )
        outputs.append(output.transpose(1, 2).flatten(2))
    return layout.ungather(outputs)


def _is_small(block: Block, heads: Heads, layout: Layout) -> bool:
    """Whether a matrix of all scores is better than flash attention's many small tiles."""
    s, t = block.tokens.shape
    keys = t if block.prefix is None else t + layout.blocks[block.prefix].tokens.shape[1]
    return keys <= _SMALL_KEYS and s * heads.queries * t * keys <= _SMALL_SCORES


class _AttendSmall(torch.autograd.Function):
    """Scores as matrices, batched over sequences and heads; for short sequences.

    Within a block, features are ordered (p, h, g, r, t): prompt, key head, completion, query head
    of the key head, token. So one product serves all completions of a prompt.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: Heads, layout: Layout) -> Tensor:
        ctx.heads, ctx.layout = heads, layout
        parts = [_small_parts(block, block.gather(qkv), heads, layout) for block in layout.blocks]
        saved, outputs = [], []
        for block, (queries, keys, values) in zip(layout.blocks, parts, strict=True):
            s, t = block.tokens.shape
            mask = torch.full((t, t), -torch.inf, dtype=qkv.dtype).triu_(1)
            mask = mask.expand(heads.queries // heads.keys, t, t).reshape(-1, t)
            own = torch.baddbmm(mask, queries, keys.transpose(1, 2))
            if block.prefix is None:
                weights = torch.softmax(own, -1)
                output = torch.bmm(weights, values)
            else:
                _, more_keys, more_values = parts[block.prefix]
                together = queries.view(len(more_keys), -1, heads.width)
                of_prefix = torch.bmm(together, more_keys.transpose(1, 2))
                bias = layout.blocks[block.prefix].bias(qkv)
                if bias is not None:
                    of_prefix.view(len(bias), -1, bias.shape[-1]).add_(bias[:, 0])
                of_prefix = of_prefix.view(*own.shape[:2], -1)
                weights = torch.softmax(torch.cat((of_prefix, own), -1), -1)
                n = of_prefix.shape[-1]
                output = torch.bmm(weights[..., :n].view(len(more_keys), -1, n), more_values)
                output = output.view(queries.shape).baddbmm_(weights[..., n:], values)
            saved += [queries, keys, values, weights]
            outputs.append(_from_small(output, block, heads, layout))
        ctx.save_for_backward(*saved)
        return layout.ungather(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        heads, layout = ctx.heads, ctx.layout
        saved = ctx.saved_tensors
        blocks = [saved[i : i + 4] for i in range(0, len(saved), 4)]
        grads: list[list[Tensor]] = []
        for block, (queries, keys, values, weights) in zip(layout.blocks, blocks, strict=True):
            above = block.gather(grad.contiguous())
            if len(block.padding):
                above.view(-1, above.shape[-1])[block.padding] = 0
            above = _to_small(above, block, heads, layout)
            own = torch.bmm(above, values.transpose(1, 2))
            n = weights.shape[-1] - own.shape[-1]
            of_own = weights[..., n:]
            into_values = torch.bmm(of_own.transpose(1, 2), above)
            if block.prefix is None:
                scores = torch._softmax_backward_data(own, weights, -1, weights.dtype)
                into_queries = torch.bmm(scores, keys)
                into_keys = torch.bmm(scores.transpose(1, 2), queries)
            else:
                _, more_keys, more_values, _ = blocks[block.prefix]
                lines = len(more_keys)
                together = above.view(lines, -1, heads.width)
                of_prefix = torch.bmm(together, more_values.transpose(1, 2))
                both = torch.cat((of_prefix.view(*own.shape[:2], n), own), -1)
                scores = torch._softmax_backward_data(both, weights, -1, weights.dtype)
                to_prefix = scores[..., :n].view(lines, -1, n)
                into_queries = torch.bmm(to_prefix, more_keys).view(queries.shape)
                into_queries.baddbmm_(scores[..., n:], keys)
                into_keys = torch.bmm(scores[..., n:].transpose(1, 2), queries)
                _, prefix_keys, prefix_values = grads[block.prefix]
                grouped = queries.view(lines, -1, heads.width)
                prefix_keys.baddbmm_(to_prefix.transpose(1, 2), grouped)
                weighed = weights[..., :n].view(lines, -1, n)
                prefix_values.baddbmm_(weighed.transpose(1, 2), together)
            grads.append([into_queries.mul_(heads.scale), into_keys, into_values])
        parts = []
        for block, (into_queries, into_keys, into_values) in zip(layout.blocks, grads, strict=True):
            (s, t), (p, g) = block.tokens.shape, _grid(block, layout)
            shape = (p, heads.keys, g, t, heads.width)
            # Keys were scaled once by the queries' scale, so their gradient holds it already.
            parts.append(
                torch.cat(
                    [
                        _from_small(into_queries, block, heads, layout),
                        into_keys.view(shape).permute(0, 2, 3, 1, 4).reshape(s, t, -1),
                        into_values.view(shape).permute(0, 2, 3, 1, 4).reshape(s, t, -1),
                    ],
                    -1,
                )
            )
        result = layout.ungather(parts)
        if layout.real < len(result):
            result[layout.real :] = 0
        return result, None, None


def _grid(block: Block, layout: Layout) -> tuple[int, int]:
    """Return the block's prompts and completions of each, (S, 1) without a prefix."""
    s = len(block.tokens)
    if block.prefix is None:
        return s, 1
    p = len(layout.blocks[block.prefix].tokens)
    return p, s // p


def _small_parts(
    block: Block, part: Tensor, heads: Heads, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scaled ``(p h g, r t, K)`` queries and ``(p h g, t, K)`` keys and values."""
    (_, t), (p, g) = block.tokens.shape, _grid(block, layout)
    n = heads.queries * heads.width
    queries = _to_small(part[..., :n], block, heads, layout).mul_(heads.scale)
    rest = part[..., n:].unflatten(-1, (2, heads.keys, heads.width)).unflatten(0, (p, g))
    keys, values = rest.permute(3, 0, 4, 1, 2, 5).reshape(2, p * heads.keys * g, t, -1)
    return queries, keys, values


def _to_small(x: Tensor, block: Block, heads: Heads, layout: Layout) -> Tensor:
    """Reorder ``(S, T, H K)`` to ``(p h g, r t, K)``, always a copy."""
    (_, t), (p, g) = block.tokens.shape, _grid(block, layout)
    x = x.unflatten(-1, (heads.keys, -1, heads.width)).unflatten(0, (p, g))  # p g t h r k
    x = x.permute(0, 3, 1, 4, 2, 5).clone(memory_format=torch.contiguous_format)
    return x.view(p * heads.keys * g, -1, heads.width)


def _from_small(x: Tensor, block: Block, heads: Heads, layout: Layout) -> Tensor:
    """Undo ``_to_small``."""
    (s, t), (p, g) = block.tokens.shape, _grid(block, layout)
    x = x.view(p, heads.keys, g, -1, t, heads.width)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(s, t, -1)


class _AttendFlash(torch.autograd.Function):
    """Flash attention per block; with a prefix, in two parts merged by their log-sum-exps.

    The softmax over prefix and own keys together has the log-sum-exp of both; given it and the
    merged output, the backward pass of each part of the keys is that of ordinary flash attention
    (as in ring attention, Liu et al. 2023, arXiv:2310.01889).
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: Heads, layout: Layout) -> Tensor:
        ctx.heads, ctx.layout = heads, layout
        parts = [block.gather(qkv) for block in layout.blocks]
        outputs, sums = [], []
        for block, part in zip(layout.blocks, parts, strict=True):
            before = None if block.prefix is None else parts[block.prefix]
            output, log_sums = _forward(block, part, before, heads, layout)
            outputs.append(output)
            sums.append(log_sums)
        ctx.save_for_backward(*parts, *outputs, *sums)
        return layout.ungather([output.flatten(2) for output in outputs])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        heads, layout = ctx.heads, ctx.layout
        n = len(layout.blocks)
        saved = ctx.saved_tensors
        parts, outputs, sums = saved[:n], saved[n : 2 * n], saved[2 * n :]
        grads = [torch.zeros_like(part) for part in parts]
        for i, block in enumerate(layout.blocks):
            above = block.gather(grad.contiguous())
            if len(block.padding):
                above.view(-1, above.shape[-1])[block.padding] = 0
            before = block.prefix
            _backward(
                above.unflatten(-1, outputs[i].shape[2:]),
                (block, parts[i], outputs[i], sums[i], grads[i]),
                None if before is None else (layout.blocks[before], parts[before], grads[before]),
                heads,
            )
        result = layout.ungather(grads)
        if layout.real < len(result):
            result[layout.real :] = 0
        return result, None, None


def _forward(
    block: Block, part: Tensor, before: Tensor | None, heads: Heads, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Return ``(S, T, H_kv, rep, K)`` outputs and ``(S, T, H_kv, rep)`` log-sum-exps."""
    queries, keys, values = heads.split(part)
    output = torch.empty(queries.shape, dtype=part.dtype)
    log_sums = torch.empty(queries.shape[:-1], dtype=part.dtype)
    for r in range(queries.shape[3]):
        own, own_sum = _call(queries[:, :, :, r], keys, values, heads.scale, causal=True)
        if before is not None and block.prefix is not None:
            bias = layout.blocks[block.prefix].bias(part)
            _, more_keys, more_values = heads.split(before)
            grouped = queries[:, :, :, r].unflatten(0, (len(before), -1)).flatten(1, 2)
            other, other_sum = _call(grouped, more_keys, more_values, heads.scale, bias=bias)
            other, other_sum = other.view(own.shape), other_sum.view(own_sum.shape)
            total = torch.logaddexp(own_sum, other_sum)
            own = own * (own_sum - total).exp_()[..., None]
            own.addcmul_(other, (other_sum - total).exp_()[..., None])
            own_sum = total
        output[:, :, :, r] = own
        log_sums[:, :, :, r] = own_sum
    return output, log_sums


def _call(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    *,
    causal: bool = False,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Flash attention of ``(S, T, H, K)``: contiguous outputs and ``(S, T, H)`` log-sum-exps."""
    q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
    output, log_sums = _flash(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
    return output.transpose(1, 2), log_sums.transpose(1, 2)


def _backward(
    above: Tensor,
    own: tuple[Block, Tensor, Tensor, Tensor, Tensor],
    before: tuple[Block, Tensor, Tensor] | None,
    heads: Heads,
) -> None:
    """Add the gradients of one block to its own and its prefix's ``(S, T, F)`` gradients."""
    _, part, outputs, log_sums, grads = own
    queries, keys, values = heads.split(part)
    into_queries, into_keys, into_values = heads.split(grads)
    for r in range(queries.shape[3]):
        q, o, s, g = queries[:, :, :, r], outputs[:, :, :, r], log_sums[:, :, :, r], above[:, :, :, r]
        a, b, c = _call_backward(g, q, keys, values, o, s, heads.scale, causal=True)
        into_keys += b
        into_values += c
        if before is not None:
            block, more, more_grads = before
            _, more_keys, more_values = heads.split(more)
            _, into_more_keys, into_more_values = heads.split(more_grads)
            g, q, o, s = (x.unflatten(0, (len(more), -1)).flatten(1, 2) for x in (g, q, o, s))
            d, b, c = _call_backward(
                g, q, more_keys, more_values, o, s, heads.scale, bias=block.bias(part)
            )
            a = a + d.view(a.shape)
            into_more_keys += b
            into_more_values += c
        into_queries[:, :, :, r] += a


def _call_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    log_sums: Tensor,
    scale: float,
    *,
    causal: bool = False,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    g, q, k, v, o = (x.transpose(1, 2) for x in (grad, queries, keys, values, output))
    grads = _flash_backward(
        g, q, k, v, o, log_sums.transpose(1, 2), 0.0, causal, attn_mask=bias, scale=scale
    )
    return tuple(x.transpose(1, 2) for x in grads)
