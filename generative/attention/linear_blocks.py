r"""The parts of linear attention: checked inputs, blocks of features, the state that sums them.

Exponential features are kept as ``phi = exp(log_scale) * stabilised``. A query's scale is the
greatest of its log features, a key's likewise (w_s); a row's is ``r_t``, the greatest ``w_s`` up
to t. All of it is constants to autograd: the normalised result does not depend on any of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from generative.attention.checks import (
    accumulated,
    check_causal,
    check_key_mask,
    check_qkv,
    repeat_heads,
)
from generative.attention.features import FeatureMap, LogFeatures

__all__ = [
    "Keys",
    "LinearState",
    "Queries",
    "add_keys",
    "add_token",
    "ask",
    "attend_in_chunks",
    "check_linear",
    "continue_state",
    "first_state",
    "read_keys",
    "read_queries",
]

NOTHING = -1e30
"""Log scale of no key at all: finite, so that a difference of two is never NaN."""


class LinearState(NamedTuple):
    """What linear attention keeps of the keys and values so far; its size is constant."""

    memory: Tensor
    """``(B, H, K, K_v)``, sum of phi(k) v^T (K: features of the map)."""
    normalizer: Tensor
    """``(B, H, K)``, sum of phi(k)."""
    log_scale: Tensor | None = None
    """``(B, H)``: both sums are times exp of it (exponential maps); None: as they stand."""


class Queries(NamedTuple):
    """Features of queries, float32 or wider."""

    features: Tensor
    """``(B, H, T, M)``."""
    logs: Tensor | None
    """``(B, H, T)``, taken out of ``features``; None: nothing was."""


class Keys(NamedTuple):
    """Features of keys with their values: heads repeated, float32 or wider, hidden keys 0."""

    features: Tensor
    """``(B, H, T_k, M)``."""
    values: Tensor
    """``(B, H, T_k, K_v)``."""
    logs: Tensor | None
    """``(B, H, T_k)``, taken out of ``features``; None: nothing was."""


def check_linear(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, attend: Tensor | None, decay: Tensor | None
) -> Tensor | None:
    """Return which keys may not be looked at, ``(B|1, H|1, T_k, 1)``; None: none.

    Raises:
        TypeError, ValueError: For what linear attention cannot take, by name.
    """
    check_qkv(q, k, v)
    check_causal(causal, q, k)
    if decay is not None:
        if not causal:
            raise ValueError("decay needs causal=True: it is by distance back in time")
        if not isinstance(decay, Tensor):
            raise TypeError(
                f"decay is {decay!r}, expected a tensor (H,), one gamma a head; for the same in "
                "all, torch.full((H,), gamma)"
            )
        if decay.shape != q.shape[1:2]:
            raise ValueError(
                f"decay has shape {tuple(decay.shape)}, expected ({q.shape[1]},): one gamma a head"
            )
        # On a GPU the look at its values would wait for all that was launched; a graph has none.
        readable = decay.device.type == "cpu" and not torch.compiler.is_compiling()
        if readable and not ((decay > 0) & (decay <= 1)).all():
            raise ValueError(
                f"decay is {decay.tolist()}, expected numbers in (0, 1]: gamma multiplies what is "
                "held once a token; leave it out for no decay"
            )
    if attend is None:
        return None
    return ~check_key_mask(attend, q, k).expand(-1, -1, -1, k.shape[2]).mT


def read_queries(q: Tensor, feature_map: FeatureMap) -> Queries:
    """Return the features of some queries."""
    return Queries(*_features(q.to(accumulated(q.dtype)), feature_map))


def read_keys(
    k: Tensor, v: Tensor, feature_map: FeatureMap, hidden: Tensor | None, heads: int
) -> Keys:
    """Return the features of some keys; what stands at hidden ones, NaN too, has no effect."""
    k, v = (repeat_heads(x.to(accumulated(x.dtype)), heads) for x in (k, v))
    if hidden is None:
        features, logs = _features(k, feature_map)
        return Keys(features, v, logs)
    features, logs = _features(k.masked_fill(hidden, 0.0), feature_map)
    if logs is not None:
        logs = logs.masked_fill(hidden[..., 0], NOTHING)
    return Keys(features.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0), logs)


def _features(x: Tensor, feature_map: FeatureMap) -> tuple[Tensor, Tensor | None]:
    if not isinstance(feature_map, LogFeatures):
        features = feature_map(x)
        if features.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"feature_map made {tuple(features.shape)} of {tuple(x.shape)}, expected (..., M) "
                "of (..., K): features of each query and key, on the last axis"
            )
        return features, None
    logs = feature_map.log(x)
    scale = logs.detach().amax(-1, keepdim=True).clamp(min=NOTHING)
    return (logs - scale).exp(), scale[..., 0]


def first_state(keys: Keys) -> LinearState:
    """Return the state that holds no token, for keys and values like these."""
    rows, heads, _, features = keys.features.shape
    memory = keys.features.new_zeros(rows, heads, features, keys.values.shape[3])
    scale = None if keys.logs is None else memory.new_full((rows, heads), NOTHING)
    return LinearState(memory, memory.new_zeros(rows, heads, features), scale)


def continue_state(keys: Keys, state: LinearState | None) -> LinearState:
    """Return ``state``, or a first one; one of other shapes is a ValueError."""
    first = first_state(keys)
    if state is None:
        return first
    if state.memory.shape != first.memory.shape:
        raise ValueError(
            f"state.memory has shape {tuple(state.memory.shape)}, but q, k, v and the feature map "
            f"give {tuple(first.memory.shape)}: (B, H, K, K_v); go on with the same rows and heads"
        )
    if (state.log_scale is None) != (first.log_scale is None):
        raise ValueError(
            "state was made with another feature_map: only exponential maps (LogFeatures) keep "
            "state.log_scale; go on with the map that it was made with"
        )
    return state


def add_keys(keys: Keys, state: LinearState) -> LinearState:
    """Return the state with keys and values added, none of them faded."""
    features, scale = keys.features, state.log_scale
    memory, normalizer = state.memory, state.normalizer
    if keys.logs is not None and scale is not None:
        old, scale = scale, torch.maximum(scale, keys.logs.amax(-1))
        features = features * (keys.logs - scale[..., None]).exp()[..., None]
        keep = (old - scale).exp()[..., None]
        memory, normalizer = memory * keep[..., None], normalizer * keep
    memory, normalizer = memory + features.mT @ keys.values, normalizer + features.sum(-2)
    return LinearState(memory, normalizer, scale)


def ask(queries: Queries, state: LinearState, normalize: bool) -> Tensor:
    """Return what queries ``(B, H, T, M)`` read from the state, ``(B, H, T, K_v)``."""
    totals, logs = None, None
    if normalize:
        totals = (queries.features @ state.normalizer[..., None])[..., 0]
    elif queries.logs is not None and state.log_scale is not None:
        logs = queries.logs + state.log_scale[..., None]
    return _answers(queries.features @ state.memory, totals, logs)


def add_token(keys: Keys, state: LinearState, gamma: Tensor | None) -> LinearState:
    """Return the state with one key and value added, the others faded.

    ``keys`` is of one token; ``gamma`` ``(H, 1)``, None is 1.
    """
    key, value, scale = keys.features[:, :, 0], keys.values, state.log_scale
    memory, normalizer = state.memory, state.normalizer
    keep = gamma
    if keys.logs is not None and scale is not None:
        held = scale if gamma is None else scale + gamma[:, 0].log()
        scale = torch.maximum(held, keys.logs[..., 0])
        key = key * (keys.logs[..., 0] - scale).exp()[..., None]
        keep = (held - scale).exp()[..., None]
    if keep is not None:
        memory, normalizer = memory * keep[..., None], normalizer * keep
    return LinearState(memory + key[..., None] * value, normalizer + key, scale)


def _answers(numerators: Tensor, denominators: Tensor | None, logs: Tensor | None) -> Tensor:
    """Return sums over the keys, divided by the sum of weights where there is one and it is not 0.

    Args:
        numerators: ``(..., K_v)``, sums of weighted values.
        denominators: ``(...)``; None: undivided, and times exp of ``logs``.
        logs: ``(...)``, what was taken out of the weights.
    """
    if denominators is None:
        return numerators if logs is None else numerators * logs.exp()[..., None]
    nothing = denominators == 0
    inverse = denominators.masked_fill(nothing, 1.0).reciprocal().masked_fill(nothing, 0.0)
    return numerators * inverse[..., None]


class _Weights(NamedTuple):
    """Decay and scales of n chunks of C tokens, as factors at most 1 (H may be 1)."""

    within: Tensor
    """``(B, H, n, C, C)``, of a score; 0 for keys after the query."""
    enter: Tensor
    """``(B, H, n, C)``, of what the state held before the chunk, to each query."""
    leave: Tensor
    """``(B, H, n, C)``, of each key, to the state after the chunk."""
    keep: Tensor
    """``(B, H, n)``, of what the state held before the chunk, to the state after it."""
    rows: Tensor | None
    """``(B, H, n, C)``, log scale of each query's row, r."""


def _weights(
    block: Keys, state: LinearState, log_decay: Tensor | None, chunk: int
) -> _Weights | None:
    if log_decay is None and block.logs is None:
        return None
    steps = torch.arange(chunk, device=block.features.device)
    fade = block.features.new_zeros(1) if log_decay is None else log_decay
    fade = fade[:, None, None]  # (H, n, C)
    enter, leave, keep = fade * (steps + 1), fade * (chunk - 1 - steps), fade[..., 0] * chunk
    within = fade[..., None] * (steps[:, None] - steps)
    rows = None
    if block.logs is not None and state.log_scale is not None:
        rows = _row_scales(block.logs, state.log_scale, fade[..., 0]).unflatten(2, (-1, chunk))
        keys = block.logs.unflatten(2, (-1, chunk))
        after = rows[..., -1]
        before = torch.cat((state.log_scale[..., None], after[..., :-1]), -1)
        within = within + (keys[..., None, :] - rows[..., None])
        enter = enter + (before[..., None] - rows)
        leave = leave + (keys - after[..., None])
        keep = keep + (before - after)
    within = within.masked_fill(steps > steps[:, None], -torch.inf)
    return _Weights(within.exp(), enter.exp(), leave.exp(), keep.exp(), rows)


def _row_scales(keys: Tensor, before: Tensor, fade: Tensor) -> Tensor:
    """Return the greatest of faded log scales up to each token, ``(B, H, T)``."""
    faded = fade * torch.arange(keys.shape[2], device=keys.device)
    greatest = (keys - faded).cummax(-1).values
    return torch.maximum(greatest, (before[..., None] + fade)) + faded


def attend_in_chunks(
    asked: Queries,
    block: Keys,
    state: LinearState,
    *,
    chunk: int,
    log_decay: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, LinearState]:
    """Return what tokens in whole chunks read after ``state``, and the state after them.

    Args:
        asked: Queries of n * C tokens.
        block: Their keys and values.
        state: Of the tokens before them.
        chunk: C.
        log_decay: ``(H,)``; None is 0.
        normalize: Divide by the sum of weights.

    Returns:
        ``(B, H, n * C, K_v)`` and the state.
    """
    queries, keys, values = (
        x.unflatten(2, (-1, chunk)) for x in (asked.features, block.features, block.values)
    )
    weights = _weights(block, state, log_decay, chunk)
    scores = queries @ keys.mT
    scores = scores.tril()  # before all else: scores of keys to come may be infinite
    if weights is not None:
        scores = scores * weights.within
        queries, keys = queries * weights.enter[..., None], keys * weights.leave[..., None]
    keep = None if weights is None else weights.keep
    memories, memory = _before_chunks(keys.mT @ values, state.memory, keep)
    normalizers, normalizer = _before_chunks(keys.sum(-2), state.normalizer, keep)
    numerators = scores @ values + queries @ memories
    rows = None if weights is None else weights.rows
    scale = None if rows is None else rows[..., -1, -1]
    denominators, logs = None, None
    if normalize:
        denominators = scores.sum(-1) + (queries @ normalizers[..., None])[..., 0]
    elif rows is not None and asked.logs is not None:
        logs = rows + asked.logs.unflatten(2, (-1, chunk))
    out = _answers(numerators, denominators, logs)
    return out.flatten(2, 3), LinearState(memory, normalizer, scale)


def _before_chunks(updates: Tensor, held: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return a sum before each chunk, ``(B, H, n, ...)``, and after the last.

    Args:
        updates: ``(B, H, n, ...)``, what each chunk adds.
        held: ``(B, H, ...)``, the sum before the first.
        keep: ``(B|1, H|1, n|1)``, what each chunk leaves of the sum; None is 1.
    """
    before = []
    for c, update in enumerate(updates.unbind(2)):
        before.append(held)
        if keep is None:
            held = held + update
        else:
            kept = keep[..., c if keep.shape[-1] > 1 else 0]
            held = held * kept[(...,) + (None,) * (held.dim() - 2)] + update
    return (before[0][:, :, None] if len(before) == 1 else torch.stack(before, 2)), held
