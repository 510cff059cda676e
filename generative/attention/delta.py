r"""The gated delta rule (Yang et al. 2024, arXiv:2412.06464): linear attention that overwrites.

    S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,    o_t = S_t^T q_t

Linear attention adds each value to what its key held before; here ``beta_t`` of what the memory
held at ``k_t`` is taken out first, and ``alpha_t`` fades the whole. With ``beta`` at most 1 and
keys of length 1 what is held is never enlarged, so normalise keys before. Without decay it is
DeltaNet (arXiv:2406.06484). A token is left out by ``beta = 0`` and ``log_decay = 0``.

The chunked form solves for all the writes of a chunk at once. What token t writes is ``k_t u_t^T``:

    u_t = beta_t (v_t - b_t S_0^T k_t - sum_{s < t} b_t / b_s (k_s . k_t) u_s),    b_t = prod alpha

a triangular system, ``(I + L) U = U_0 - W S_0`` with both right sides found before S_0 is known
(the WY representation, extended by decay). Time is O(T (C + K) K), no (T, T) tensor is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from generative.attention.checks import accumulated, check_causal, check_qkv, repeat_heads

__all__ = ["gated_delta_rule_chunked", "gated_delta_rule_recurrent"]


def gated_delta_rule_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    beta: Tensor,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Gated delta rule token by token (arXiv:2412.06464, eq. 10).

    Args:
        q: ``(B, H, T, K)``, scaled by the caller.
        k: ``(B, H_kv, T, K)``, of length 1.
        v: ``(B, H_kv, T, K_v)``.
        beta: ``(B, H, T)``, in 0 to 1: how much of what the memory held at k_t is replaced.
        log_decay: ``(B, H, T)``, log alpha, finite and at most 0; None is 0.
        state: ``(B, H, K, K_v)``, the memory before the first token; None is 0.

    Returns:
        ``(B, H, T, K_v)``, dtype of ``q``, and the memory after the last token.

    Raises:
        TypeError, ValueError: If an argument does not fit; the message names it.

    >>> k = torch.ones(1, 1, 2, 1)
    >>> v = torch.tensor([[[[1.0], [5.0]]]])
    >>> out, memory = gated_delta_rule_recurrent(k, k, v, beta=torch.tensor([[[1.0, 0.5]]]))
    >>> out.flatten()  # written whole, then half overwritten
    tensor([1., 3.])
    """
    dtype = q.dtype
    q, k, v, beta, log_decay, memory = _read(q, k, v, beta, log_decay, state)
    alpha = log_decay.exp()
    outputs = []
    for query, key, value, b, a in zip(*(x.unbind(2) for x in (q, k, v, beta, alpha)), strict=True):
        memory = memory * a[..., None, None]
        held = (key[..., None, :] @ memory)[..., 0, :]
        write = b[..., None] * (value - held)
        memory = memory + key[..., :, None] * write[..., None, :]
        outputs.append((query[..., None, :] @ memory)[..., 0, :])
    return torch.stack(outputs, 2).to(dtype), memory


def gated_delta_rule_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    beta: Tensor,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Gated delta rule chunk by chunk; arguments as ``gated_delta_rule_recurrent``.

    ``chunk`` is the tokens of a chunk, of which the last may be shorter: speed and memory only,
    never the result.

    Returns:
        ``(B, H, T, K_v)``, dtype of ``q``, and the memory after the last token.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: a chunk has at least 1 token")
    *tokens, memory = _read(q, k, v, beta, log_decay, state)
    whole = q.shape[2] // chunk * chunk
    outputs = []
    for start, length, size in ((0, whole, chunk), (whole, q.shape[2] - whole, q.shape[2] - whole)):
        if length:
            part = [x.narrow(2, start, length).unflatten(2, (-1, size)) for x in tokens]
            out, memory = _of_chunks(part, memory)
            outputs.append(out)
    return torch.cat(outputs, 2).to(q.dtype), memory


def _of_chunks(tokens: list[Tensor], memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return what n chunks of C tokens, ``(B, H, n, C, ...)``, read, and the memory after them."""
    q, k, v, beta, log_decay = tokens
    size = q.shape[3]
    # From s to t the decays of s + 1 .. t are summed for each s alone: a difference of two sums
    # from the start of the chunk would round by all that faded before s.
    sums = log_decay[..., None].expand(*log_decay.shape, size).tril(-1).cumsum(-2)
    future = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
    fades = sums.masked_fill(future, -torch.inf).exp()
    since_start, to_end = log_decay.cumsum(3).exp(), fades[..., -1, :]
    system = (beta[..., None] * (k @ k.mT) * fades).tril(-1)
    right = beta[..., None] * torch.cat((v, since_start[..., None] * k), -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    first, against = solved.split((v.shape[-1], k.shape[-1]), -1)
    scores = (q @ k.mT) * fades
    queries, keys = q * since_start[..., None], (k * to_end[..., None]).mT
    outputs = []
    for u, w, a, s, x, fade in zip(
        *(y.unbind(2) for y in (first, against, queries, scores, keys, since_start[..., -1])),
        strict=True,
    ):
        writes = u - w @ memory
        outputs.append(a @ memory + s @ writes)
        memory = memory * fade[..., None, None] + x @ writes
    return torch.cat(outputs, 2), memory


def _read(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return checked arguments with heads repeated, float32 or wider."""
    check_qkv(q, k, v)
    check_causal(True, q, k)
    for name, x in (("beta", beta), ("log_decay", log_decay)):
        if x is not None and x.shape != q.shape[:3]:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}, expected {tuple(q.shape[:3])}: (B, H, T), one "
                "number for each head and token"
            )
    held = (*q.shape[:2], q.shape[3], v.shape[3])
    if state is not None and state.shape != held:
        raise ValueError(
            f"state has shape {tuple(state.shape)}, expected {held}: (B, H, K, K_v); go on with "
            "the same rows and heads"
        )
    exact = accumulated(q.dtype)
    keys, values = (repeat_heads(x.to(exact), q.shape[1]) for x in (k, v))
    queries, betas = q.to(exact), beta.to(exact)
    logs = torch.zeros_like(betas) if log_decay is None else log_decay.to(exact)
    memory = queries.new_zeros(held) if state is None else state.to(exact)
    return queries, keys, values, betas, logs, memory
