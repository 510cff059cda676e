"""Causal attention over sequences of unequal length that lie end to end in one row of tokens.

Linear layers see ``(N, D)`` real tokens and no padding. Only attention needs to know where each
sequence begins: a ``Layout`` says so, once for all layers. A group of sequences may share a
prefix, its prompt, whose keys and values are computed once.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from generative.attention.rotary import turn
from posttrain.decoder_layout import Block, Heads, Layout
from posttrain.decoder_short_attention import AttendShort, is_short

__all__ = ["attend", "attend_densely", "rotate"]

Context: TypeAlias = Any  # torch's, which takes any attribute

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, qkv: Tensor, turns: Tensor) -> Tensor:
        ctx.save_for_backward(turns)
        return _turned(qkv, turns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None]:
        (turns,) = ctx.saved_tensors
        return _turned(grad, turns.conj()), None


def _turned(qkv: Tensor, turns: Tensor) -> Tensor:
    n = 2 * turns.shape[1]
    return torch.cat((turn(qkv[:, :n], turns), qkv[:, n:]), dim=1)


def rotate(qkv: Tensor, turns: Tensor) -> Tensor:
    """Turn the queries and keys of ``(N, F)`` rows by ``(N, (H + H_kv) K/2)``; values stay."""
    return _Rotate.apply(qkv, turns)  # type: ignore[no-untyped-call]  # torch's


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
    if is_short(heads, layout):
        return AttendShort.apply(qkv, heads, layout)  # type: ignore[no-untyped-call]  # torch's
    return _AttendFlash.apply(qkv, heads, layout)  # type: ignore[no-untyped-call]  # torch's


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


class _AttendFlash(torch.autograd.Function):
    """Flash attention per block; with a prefix, in two parts merged by their log-sum-exps.

    The softmax over prefix and own keys together has the log-sum-exp of both; given it and the
    merged output, the backward pass of each part of the keys is that of ordinary flash attention
    (as in ring attention, Liu et al. 2023, arXiv:2310.01889).
    """

    @staticmethod
    def forward(ctx: Context, qkv: Tensor, heads: Heads, layout: Layout) -> Tensor:
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
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
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
        q, o, s, g = (
            queries[:, :, :, r],
            outputs[:, :, :, r],
            log_sums[:, :, :, r],
            above[:, :, :, r],
        )
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
