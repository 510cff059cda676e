r"""Linear attention in three forms that compute the same (Katharopoulos et al. 2020, 2006.16236).

    o_t = sum_s phi(q_t) . phi(k_s) gamma^(t - s) v_s / sum_s phi(q_t) . phi(k_s) gamma^(t - s)

over the keys s that t may look at. The sum over s can be taken first, ``sum_s phi(k_s) v_s^T``, so
time and memory are linear in T:

- parallel: all at once. Not causal, by the two sums: O(T) time and memory. Causal, by the whole
  (T, T) matrix of weights: O(T^2) both, the form to read and the fast one for short sequences;
- chunked (causal): whole matrices within chunks, sums across them: O(T C) time, no (T, T) tensor;
- recurrent (causal): token by token, with a state of constant size.

Causal decay (gamma per head) is that of RetNet (Sun et al. 2023, arXiv:2307.08621, eq. 5 to 7);
RetNet does not normalise by the sum of weights: ``normalize=False``. Exponential feature maps
(``LogFeatures``) are kept from overflowing and stay exact. Half precision is computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from generative.attention.features import FeatureMap
from generative.attention.linear_blocks import (
    Keys,
    LinearState,
    add_keys,
    add_token,
    ask,
    attend_in_chunks,
    check_linear,
    continue_state,
    first_state,
    read_keys,
    read_queries,
)

__all__ = [
    "LinearState",
    "linear_attention",
    "linear_attention_chunked",
    "linear_attention_continued",
    "linear_attention_parallel",
    "linear_attention_recurrent",
]

CHUNK = 64
BLOCK_NUMBERS = 2**17  # of q; a block's handful of such tensors fits into 2 MB of cache


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: FeatureMap,
    causal: bool = False,
    normalize: bool = True,
    attend: Tensor | None = None,
    decay: Tensor | None = None,
) -> Tensor:
    """Linear attention by the form that is fast: chunked if causal, else parallel.

    Args:
        q: ``(B, H, T, K)``.
        k: ``(B, H_kv, T_k, K)``; H is a multiple of H_kv.
        v: ``(B, H_kv, T_k, K_v)``.
        feature_map: phi, ``(..., K) -> (..., M)``, for queries and keys; see ``features``.
        causal: A token looks at those before it and itself; T = T_k.
        normalize: Divide by the sum of weights; False leaves the sum.
        attend: bool, True = may be looked at, broadcastable to ``(B, H, 1, T_k)``. Only keys can
            be masked: the sum over keys is taken before a query is known.
        decay: gamma in (0, 1], ``(H,)``, with ``causal``; None is 1.

    Returns:
        ``(B, H, T, K_v)``, dtype of q. Exactly 0, with gradients 0, where the sum of weights is 0.

    Raises:
        ValueError: Shapes or masks that do not fit, by name.
        TypeError: ``attend`` is not bool.

    >>> q = k = torch.zeros(1, 1, 3, 2)
    >>> v = torch.tensor([[[[1.0], [2.0], [6.0]]]])
    >>> linear_attention(q, k, v, feature_map=torch.exp)[0, 0, :, 0]
    tensor([3., 3., 3.])
    >>> linear_attention(q, k, v, feature_map=torch.exp, causal=True)[0, 0, :, 0]
    tensor([1.0000, 1.5000, 3.0000])
    """
    if causal:
        return linear_attention_chunked(
            q, k, v, feature_map=feature_map, normalize=normalize, attend=attend, decay=decay
        )
    return linear_attention_parallel(
        q, k, v, feature_map=feature_map, causal=False, normalize=normalize, attend=attend,
        decay=decay,
    )  # fmt: skip


def linear_attention_parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: FeatureMap,
    causal: bool = False,
    normalize: bool = True,
    attend: Tensor | None = None,
    decay: Tensor | None = None,
) -> Tensor:
    """Linear attention of all tokens at once; arguments as ``linear_attention``.

    Memory is O(T) if not causal. If causal it is O(T^2), two (B, H, T, T) tensors.
    """
    hidden = check_linear(q, k, v, causal=causal, attend=attend, decay=decay)
    if not causal:
        return _of_all(q, k, v, feature_map, hidden, normalize)
    keys = read_keys(k, v, feature_map, hidden, q.shape[1])
    out, _ = attend_in_chunks(
        read_queries(q, feature_map),
        keys,
        first_state(keys),
        chunk=q.shape[2],
        log_decay=None if decay is None else decay.to(keys.features).log(),
        normalize=normalize,
    )
    return out.to(q.dtype)


def linear_attention_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: FeatureMap,
    chunk: int = CHUNK,
    normalize: bool = True,
    attend: Tensor | None = None,
    decay: Tensor | None = None,
) -> Tensor:
    """Causal linear attention chunk by chunk; arguments as ``linear_attention``.

    ``chunk`` is the tokens of a chunk, of which the last may be shorter: speed and memory only,
    never the result.
    """
    return linear_attention_continued(
        q, k, v, feature_map=feature_map, chunk=chunk, normalize=normalize, attend=attend,
        decay=decay,
    )[0]  # fmt: skip


def linear_attention_continued(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: FeatureMap,
    state: LinearState | None = None,
    chunk: int = CHUNK,
    normalize: bool = True,
    attend: Tensor | None = None,
    decay: Tensor | None = None,
) -> tuple[Tensor, LinearState]:
    """Causal linear attention of tokens that come after those of ``state``, chunk by chunk.

    Arguments as ``linear_attention_chunked``; ``state`` is what an earlier call returned, None
    before the first token.

    Returns:
        ``(B, H, T, K_v)`` and the state after the last token.
    """
    hidden = check_linear(q, k, v, causal=True, attend=attend, decay=decay)
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: a chunk has at least 1 token")
    spans = _spans(q, chunk)
    outputs = []
    for queries, keys in zip(
        q.split(spans, 2), _keys(q, k, v, feature_map, hidden, spans), strict=True
    ):
        state = continue_state(keys, state)
        out, state = attend_in_chunks(
            read_queries(queries, feature_map),
            keys,
            state,
            chunk=min(chunk, queries.shape[2]),
            log_decay=None if decay is None else decay.to(keys.features).log(),
            normalize=normalize,
        )
        outputs.append(out.to(q.dtype))
    assert state is not None
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)), state


def linear_attention_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: FeatureMap,
    state: LinearState | None = None,
    normalize: bool = True,
    attend: Tensor | None = None,
    decay: Tensor | None = None,
) -> tuple[Tensor, LinearState]:
    r"""Causal linear attention token by token; arguments as ``linear_attention_continued``.

        S_t = gamma S_{t-1} + phi(k_t) v_t^T,    z_t = gamma z_{t-1} + phi(k_t)
        o_t = S_t^T phi(q_t) / (z_t . phi(q_t))

    Returns:
        ``(B, H, T, K_v)`` and the state after the last token.

    >>> q = k = torch.zeros(1, 1, 2, 2)
    >>> v = torch.tensor([[[[1.0], [2.0]]]])
    >>> out, state = linear_attention_recurrent(q, k, v, feature_map=torch.exp)
    >>> out[0, 0, :, 0], state.memory[0, 0, :, 0], state.normalizer[0, 0]
    (tensor([1.0000, 1.5000]), tensor([3., 3.]), tensor([2., 2.]))
    """
    hidden = check_linear(q, k, v, causal=True, attend=attend, decay=decay)
    spans = [1] * q.shape[2]
    gamma, outputs = None, []
    for query, key in zip(q.split(1, 2), _keys(q, k, v, feature_map, hidden, spans), strict=True):
        state = continue_state(key, state)
        if decay is not None and gamma is None:
            gamma = decay.to(key.features)[:, None]
        state = add_token(key, state, gamma)
        outputs.append(ask(read_queries(query, feature_map), state, normalize).to(q.dtype))
    assert state is not None
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)), state


def _of_all(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    feature_map: FeatureMap,
    hidden: Tensor | None,
    normalize: bool,
) -> Tensor:
    """Sum the keys, then ask with every query."""
    state = None
    for keys in _keys(q, k, v, feature_map, hidden, _spans(k, CHUNK)):
        state = add_keys(keys, continue_state(keys, state))
    assert state is not None
    outputs = [
        ask(read_queries(queries, feature_map), state, normalize).to(q.dtype)
        for queries in q.split(_spans(q, CHUNK), 2)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


def _keys(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    feature_map: FeatureMap,
    hidden: Tensor | None,
    spans: list[int],
) -> Iterator[Keys]:
    """Yield keys and values span by span.

    They are split, not sliced: the backward pass of a slice fills a tensor as large as the whole.
    """
    masks = [None] * len(spans) if hidden is None else hidden.split(spans, 2)
    for keys, values, mask in zip(k.split(spans, 2), v.split(spans, 2), masks, strict=True):
        yield read_keys(keys, values, feature_map, mask, q.shape[1])


def _spans(x: Tensor, chunk: int) -> list[int]:
    """Return lengths of blocks: as many chunks as stay in a processor's cache; then the rest."""
    rows, heads, length, width = x.shape
    whole, rest = divmod(length, chunk)
    chunks = max(1, whole)
    if x.device.type == "cpu":
        chunks = max(1, BLOCK_NUMBERS // max(1, rows * heads * width * chunk))
    blocks, last = divmod(whole, chunks)
    spans = [chunks * chunk] * blocks + [last * chunk, rest]
    return [span for span in spans if span] or [0]
