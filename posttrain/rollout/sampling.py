"""Drawing tokens: random numbers that belong to the completion, and the inverse of the CDF.

The number that decides token t of completion g is a hash of the prompt's seed, g and t. Nothing
else enters, so a completion is the same in any batch, in any order, beside any others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.rollout.batch import Sampling

__all__ = ["completion_keys", "draw", "kept", "uniforms"]

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: 2^64 / golden ratio
_FIRST, _SECOND = (
    -4658895280553007687,
    -7723592293110705685,
)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_REACHED = 1e-6  # what float32 rounding may take from a sum of probabilities
_BLOCK = 32
_LEAST, _MOST = 1e-30, 1e30
"""Temperatures beyond these draw alike, but they or their reciprocals leave float32."""


def _mixed(x: Tensor) -> Tensor:
    """Splitmix64's finaliser (Steele, Lea and Flood 2014): int64 in, well-mixed int64 out."""
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # int64 >> keeps the sign: clear it


def completion_keys(seeds: Sequence[int], group_size: int) -> Tensor:
    """Return ``(P G,)`` int64 keys, completion g of prompt p at ``p * G + g``.

    Seeds may be any integers; they count modulo 2^64.
    """
    wrapped = [(seed + (1 << 63)) % (1 << 64) - (1 << 63) for seed in seeds]
    of_prompt = _mixed(torch.tensor(wrapped, dtype=torch.int64) + _GOLDEN)
    completion = torch.arange(1, group_size + 1) * _GOLDEN
    return _mixed(of_prompt[:, None] + completion).view(-1)


def uniforms(keys: Tensor, start: int, stop: int) -> Tensor:
    """Return ``(stop - start, B)`` float64 numbers in (0, 1) for tokens ``start`` to ``stop``.

    >>> keys = completion_keys([0, 1], group_size=2)
    >>> bool((uniforms(keys, 0, 8)[3:] == uniforms(keys, 3, 8)).all())
    True
    """
    steps = torch.arange(start + 1, stop + 1, device=keys.device) * _GOLDEN
    bits = _shifted(_mixed(keys + steps[:, None]), 12)
    return (bits.double() + 0.5) * 2.0**-52


def kept(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return ``(B, V)`` bool: the tokens that top-k and then top-p leave.

    Top-p keeps the fewest likeliest tokens whose share of what top-k left reaches ``top_p``. Of
    equally likely tokens those with the lower ids go first.

    >>> p = torch.tensor([[0.4, 0.1, 0.3, 0.2]])
    >>> kept(p, top_k=0, top_p=0.7).tolist(), kept(p, top_k=3, top_p=0.4).tolist()
    ([[True, False, True, False]], [[True, False, False, False]])
    """
    vocabulary = probabilities.shape[-1]
    count = min(top_k, vocabulary) or vocabulary
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    ordered, ids = ordered[:, :count].double(), ids[:, :count]
    before = ordered.cumsum(-1) - ordered
    keep = before < (top_p - _REACHED) * ordered.sum(-1, keepdim=True)
    keep[:, 0] = True
    if top_p == 1.0:
        keep = torch.ones_like(keep)
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter_(1, ids, keep)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row.

    Args:
        logits: ``(B, V)`` float32; may be overwritten.
        uniform: ``(B,)`` in (0, 1).
        sampling: Temperature, then top-k, then top-p.

    Returns:
        ``(B,)`` tokens, their log-probs of ``logits`` and of ``logits / temperature``, both
        before top-k and top-p. At temperature 0 the latter is its limit, 0.
    """
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        log_probs = torch.log_softmax(logits, -1).gather(1, tokens[:, None]).squeeze(1)
        return tokens, log_probs, torch.zeros_like(log_probs)
    tempered = logits
    if sampling.temperature != 1.0:  # from 0 down: however low the temperature, nothing overflows
        temperature = min(max(sampling.temperature, _LEAST), _MOST)
        tempered = (logits - logits.amax(-1, keepdim=True)).div_(temperature)
    probabilities = torch.softmax(tempered, -1)
    weights = probabilities
    if sampling.top_k or sampling.top_p < 1.0:
        weights = probabilities * kept(probabilities, sampling.top_k, sampling.top_p)
    tokens = _inverse_cdf(weights, uniform)
    tempered_log_probs = probabilities.gather(1, tokens[:, None]).squeeze(1).log_()
    if sampling.temperature == 1.0:
        return tokens, tempered_log_probs, tempered_log_probs
    log_probs = torch.log_softmax(logits, -1).gather(1, tokens[:, None]).squeeze(1)
    return tokens, log_probs, tempered_log_probs


def _inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return the ids at which the running sum of ``(B, V)`` weights passes uniform * total.

    First among blocks of ids, then within the block: two short sums instead of a long one.
    """
    rows, vocabulary = weights.shape
    spare = -vocabulary % _BLOCK
    if spare:
        weights = torch.nn.functional.pad(weights, (0, spare))
    blocks = weights.view(rows, -1, _BLOCK)
    sums = blocks.sum(-1).double()
    upto = sums.cumsum(-1)
    target = (uniform * upto[:, -1])[:, None]
    block = torch.searchsorted(upto, target, right=True).clamp_(max=sums.shape[1] - 1)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK)).squeeze(1)
    within = within.cumsum(-1, dtype=torch.float64)
    rest = target - upto.gather(1, block) + sums.gather(1, block)
    # Rounding may put the rest below 0 or beyond the block's end: an id with weight takes it.
    rest = torch.minimum(rest.clamp_(min=0.0), within[:, -1:] * (1 - 2.0**-52))
    ids = torch.searchsorted(within, rest, right=True).add_(block, alpha=_BLOCK).squeeze(1)
    return ids.clamp_(max=vocabulary - 1)  # NaN is beyond all: its log-prob says so, not the index
