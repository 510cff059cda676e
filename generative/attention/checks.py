"""What every attention asks of its arguments, said once; an error names the argument.

Shapes are those of the whole package: queries ``q (B, H, T_q, K)``, keys ``k (B, H_kv, T_k, K)``,
values ``v (B, H_kv, T_k, K_v)``. H is a multiple of H_kv: query head h reads key head
``h // (H / H_kv)`` (grouped queries, Ainslie et al. 2023, arXiv:2305.13245).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "accumulated",
    "allowed",
    "check_attend",
    "check_bias",
    "check_causal",
    "check_heads",
    "check_key_mask",
    "check_qkv",
    "check_tokens",
    "checked",
    "checked_scale",
    "head_size",
    "repeat_heads",
]


def check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise where queries, keys and values do not fit together.

    Args:
        q: ``(B, H, T_q, K)``.
        k: ``(B, H_kv, T_k, K)``.
        v: ``(B, H_kv, T_k, K_v)``.

    Raises:
        TypeError: If they are not of one floating dtype.
        ValueError: If their shapes do not fit, heads do not divide, or there is no key.
    """
    layout = {"q": "(B, H, T_q, K)", "k": "(B, H_kv, T_k, K)", "v": "(B, H_kv, T_k, K_v)"}
    for (name, axes), x in zip(layout.items(), (q, k, v), strict=True):
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {axes}")
        if not x.is_floating_point():
            raise TypeError(f"{name} is {x.dtype}, expected a floating dtype")
        if x.dtype != q.dtype:
            raise TypeError(f"{name} is {x.dtype}, but q is {q.dtype}; convert one of them")
    for axis, first, second in (
        ("B", ("q", q, 0), ("k", k, 0)),
        ("B", ("k", k, 0), ("v", v, 0)),
        ("K", ("q", q, 3), ("k", k, 3)),
        ("H_kv", ("k", k, 1), ("v", v, 1)),
        ("T_k", ("k", k, 2), ("v", v, 2)),
    ):
        (name, x, i), (other, y, j) = first, second
        if x.shape[i] != y.shape[j]:
            raise ValueError(
                f"{name} has {axis}={x.shape[i]}, but {other} has {axis}={y.shape[j]}: shapes "
                f"{tuple(x.shape)} and {tuple(y.shape)}, expected {layout[name]} and "
                f"{layout[other]}"
            )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"q has H={q.shape[1]} heads, which the H_kv={k.shape[1]} heads of k and v do not "
            "divide: every key head serves equally many query heads"
        )
    if k.shape[2] == 0:
        raise ValueError("k has T_k=0: there is no key to look at; leave the call out")


def check_tokens(x: Tensor, width: int) -> None:
    """Raise ValueError where ``x``, what a mixer is given, is not ``(B, T, width)``, T >= 1."""
    if x.ndim != 3 or x.shape[2] != width:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, T, D) with D={width}")
    if x.shape[1] == 0:
        raise ValueError("x has T=0: there is no token to mix; leave the call out")


def check_attend(attend: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Return ``attend`` with four axes, none of them expanded.

    Args:
        attend: bool, True = may look, broadcastable to ``(B, H, T_q, T_k)``.
        q: Checked already.
        k: Checked already.

    Returns:
        ``(B|1, H|1, T_q|1, T_k|1)``, a view.

    Raises:
        TypeError: If it is not bool.
        ValueError: If it does not broadcast.

    >>> q = torch.zeros(2, 4, 3, 8)
    >>> check_attend(torch.ones(3, 3, dtype=torch.bool), q, q).shape
    torch.Size([1, 1, 3, 3])
    """
    if attend.dtype != torch.bool:
        raise TypeError(
            f"attend is {attend.dtype}, expected bool, where True means that a query may look at "
            "a key; an additive mask goes to bias"
        )
    return _four_axes("attend", attend, q, k)


def check_bias(bias: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Return the additive ``bias`` with four axes, none of them expanded.

    Raises:
        TypeError: If it is not floating.
        ValueError: If it does not broadcast to ``(B, H, T_q, T_k)``.
    """
    if not bias.is_floating_point():
        raise TypeError(
            f"bias is {bias.dtype}, expected a floating dtype: it is added to the scores; a bool "
            "mask, True where a query may look, goes to attend"
        )
    return _four_axes("bias", bias, q, k)


def _four_axes(name: str, x: Tensor, q: Tensor, k: Tensor) -> Tensor:
    full = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if x.ndim <= 4:
        x = x[(None,) * (4 - x.ndim)]
    if x.ndim != 4 or any(
        size not in (1, whole) for size, whole in zip(x.shape, full, strict=True)
    ):
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, which does not broadcast to (B, H, T_q, T_k) = "
            f"{full}; a mask of keys (B, T_k) is given as {name}[:, None, None, :]"
        )
    return x


def check_key_mask(attend: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Return ``attend`` as a mask of keys, ``(B|1, H|1, 1, T_k|1)``, for linear attention.

    Raises:
        TypeError: If it is not bool.
        ValueError: If it does not broadcast, or has an axis of queries.
    """
    attend = check_attend(attend, q, k)
    if attend.shape[2] != 1:
        raise ValueError(
            f"attend has shape {tuple(attend.shape)}, expected (B|1, H|1, 1, T_k): linear "
            "attention sums over keys once for all queries, so it can leave keys out, but not for "
            "single queries; give a mask of keys, causal=True, or use softmax attention"
        )
    return attend


def check_causal(causal: bool, q: Tensor, k: Tensor) -> None:
    """Raise ValueError where ``causal`` meets different lengths."""
    if causal and q.shape[2] != k.shape[2]:
        raise ValueError(
            f"causal=True with T_q={q.shape[2]} queries and T_k={k.shape[2]} keys: without a cache "
            "it is ambiguous whether they are aligned at the start or at the end. Pass attend, for "
            "alignment at the end torch.ones(T_q, T_k, dtype=torch.bool).tril(T_k - T_q), or "
            "extend a state, whose queries are aligned at the end"
        )


def checked_scale(scale: float | None, q: Tensor) -> float:
    """Return ``scale``, or ``1 / sqrt(K)`` for None.

    Raises:
        ValueError: If it is not finite.
    """
    if scale is None:
        return 1.0 / math.sqrt(q.shape[3]) if q.shape[3] else 1.0
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale}, expected a finite number that multiplies the scores")
    return float(scale)


def accumulated(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that scores are computed in: float32 for half precision, else its own."""
    return torch.promote_types(dtype, torch.float32)


def allowed(attend: Tensor | None, causal: bool, q: Tensor, k: Tensor) -> Tensor | None:
    """Return the mask that ``attend`` and ``causal`` make together, four axes; None is all.

    It has an axis of queries and one of keys wherever ``causal`` is True.
    """
    if not causal:
        return attend
    past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()[None, None]
    return past if attend is None else attend & past


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Return ``(B, H, T, K)`` of ``(B, H_kv, T, K)``: each head for its group of query heads.

    >>> repeat_heads(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), 4).flatten()
    tensor([1., 1., 2., 2.])
    """
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def checked(
    q: Tensor, k: Tensor, v: Tensor, *, attend: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the arguments of an attention as its arithmetic may take them.

    Keys and values that no query may look at are 0, and so are queries that may look nowhere. What
    stands at padding then never matters, be it NaN, neither in outputs nor in gradients, which are
    exactly 0 there (decision 0003). Takes O(T) memory; without ``attend`` nothing is copied.

    Args:
        q: ``(B, H, T_q, K)``.
        k: ``(B, H_kv, T_k, K)``.
        v: ``(B, H_kv, T_k, K_v)``.
        attend: bool, True = may look, broadcastable to ``(B, H, T_q, T_k)``, or None.
        causal: Query i looks at keys up to i alone.

    Returns:
        q, k, v, and ``attend`` as ``(B|1, H|1, T_q|1, T_k|1)`` or None; ``causal`` holds besides.

    Raises:
        TypeError, ValueError: If an argument does not fit; the message names it.
    """
    check_qkv(q, k, v)
    check_causal(causal, q, k)
    if attend is None:
        return q, k, v, None
    attend = check_attend(attend, q, k)
    unseen = ~_seen(attend, k.shape[1]).mT
    blind = ~_sees(attend, causal)
    k, v = k.masked_fill(unseen, 0.0), v.masked_fill(unseen, 0.0)
    return q.masked_fill(blind, 0.0), k, v, attend


def _seen(attend: Tensor, kv_heads: int) -> Tensor:
    """Return ``(B|1, H_kv|1, 1, T_k|1)``, True where a query of a head of the group may look."""
    seen = attend if attend.shape[2] == 1 else attend.any(dim=2, keepdim=True)
    return seen.unflatten(1, (kv_heads, -1)).any(dim=2) if seen.shape[1] > kv_heads else seen


def _sees(attend: Tensor, causal: bool) -> Tensor:
    """Return ``(B|1, H|1, T_q|1, 1)``, True where a query may look at a key."""
    sees = attend.any(dim=-1, keepdim=True)
    if not causal or attend.shape[3] == 1:
        return sees
    first = attend.view(torch.uint8).argmax(dim=-1, keepdim=True)
    places = torch.arange(attend.shape[3], device=attend.device)
    return sees & (first <= places[:, None])


def check_heads(heads: int, key_heads: int | None = None) -> None:
    """Raise ValueError where ``key_heads``, None being as many, do not divide ``heads``."""
    for name, number in (("heads", heads), ("key_heads", key_heads)):
        if number is not None and number < 1:
            raise ValueError(f"{name}={number}: give at least 1")
    if key_heads is not None and heads % key_heads:
        raise ValueError(
            f"key_heads={key_heads} with heads={heads}: each head of keys and values serves the "
            "same number of heads of queries, so key_heads must divide heads"
        )


def head_size(width: int, heads: int) -> int:
    """Return the features of each of ``heads`` heads.

    Raises:
        ValueError: If heads do not divide ``width``.
    """
    if width % heads:
        raise ValueError(
            f"heads={heads} with width={width}: the heads share the features evenly, so heads must "
            "divide width"
        )
    return width // heads
