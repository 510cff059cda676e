"""Causal attention over short sequences, with all scores of a block in one matrix product.

Flash attention's tiles do not pay for sequences of a few dozen tokens; batched products do.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from posttrain.decoder_layout import Block, Heads, Layout

__all__ = ["AttendShort", "is_short"]

Context: TypeAlias = Any  # torch's, which takes any attribute

_KEYS = 128
"""Most keys of a sequence, its prefix included."""
_SCORES = 1 << 23
"""Most scores of a block: 32 MiB."""


def is_short(heads: Heads, layout: Layout) -> bool:
    """Whether matrices of all scores are better than flash attention's tiles."""
    for block in layout.blocks:
        s, t = block.tokens.shape
        keys = t if block.prefix is None else t + layout.blocks[block.prefix].tokens.shape[1]
        if keys > _KEYS or s * heads.queries * t * keys > _SCORES:
            return False
    return True


class AttendShort(torch.autograd.Function):
    """Scores as matrices, batched over sequences and heads; for short sequences.

    Within a block, features are ordered (p, h, g, r, t): prompt, key head, completion, query head
    of the key head, token. So one product serves all completions of a prompt.
    """

    @staticmethod
    def forward(ctx: Context, qkv: Tensor, heads: Heads, layout: Layout) -> Tensor:
        """Return ``(N, H K)``."""
        ctx.heads, ctx.layout = heads, layout
        parts = [_parts(block, block.gather(qkv), heads, layout) for block in layout.blocks]
        saved, outputs = [], []
        for block, (queries, keys, values) in zip(layout.blocks, parts, strict=True):
            t = block.tokens.shape[1]
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
            outputs.append(_restored(output, block, heads, layout))
        ctx.save_for_backward(*saved)
        return layout.ungather(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``qkv``."""
        heads, layout = ctx.heads, ctx.layout
        saved = ctx.saved_tensors
        blocks = [saved[i : i + 4] for i in range(0, len(saved), 4)]
        grads: list[list[Tensor]] = []
        for block, (queries, keys, values, weights) in zip(layout.blocks, blocks, strict=True):
            above = block.gather(grad.contiguous())
            if len(block.padding):
                above.view(-1, above.shape[-1])[block.padding] = 0
            above = _regrouped(above, block, heads, layout)
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
                        _restored(into_queries, block, heads, layout),
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


def _parts(
    block: Block, part: Tensor, heads: Heads, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scaled ``(p h g, r t, K)`` queries and ``(p h g, t, K)`` keys and values."""
    (_, t), (p, g) = block.tokens.shape, _grid(block, layout)
    n = heads.queries * heads.width
    queries = _regrouped(part[..., :n], block, heads, layout).mul_(heads.scale)
    rest = part[..., n:].unflatten(-1, (2, heads.keys, heads.width)).unflatten(0, (p, g))
    keys, values = rest.permute(3, 0, 4, 1, 2, 5).reshape(2, p * heads.keys * g, t, -1)
    return queries, keys, values


def _regrouped(x: Tensor, block: Block, heads: Heads, layout: Layout) -> Tensor:
    """Reorder ``(S, T, H K)`` to ``(p h g, r t, K)``, always a copy."""
    p, g = _grid(block, layout)
    x = x.unflatten(-1, (heads.keys, -1, heads.width)).unflatten(0, (p, g))  # p g t h r k
    x = x.permute(0, 3, 1, 4, 2, 5).clone(memory_format=torch.contiguous_format)
    return x.view(p * heads.keys * g, -1, heads.width)


def _restored(x: Tensor, block: Block, heads: Heads, layout: Layout) -> Tensor:
    """Undo ``_regrouped``."""
    (s, t), (p, g) = block.tokens.shape, _grid(block, layout)
    x = x.view(p, heads.keys, g, -1, t, heads.width)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(s, t, -1)
