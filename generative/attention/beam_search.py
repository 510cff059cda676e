"""Greedy and beam search over anything that extends sequences and has a state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from generative.attention.mixers import State

__all__ = ["Hypotheses", "beam_search", "greedy_search", "length_penalty"]

Extend = Callable[[Tensor], Tensor]
"""Appends ``(R, 1)`` tokens to the state's rows and returns the logits after them, (R, 1, V)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Hypotheses:
    """The best sequences that a search found, for B sources, best first."""

    tokens: Tensor
    """``(B, N, T)`` int64; beyond a length, the token that ends."""
    lengths: Tensor
    """``(B, N)`` int64, the token that ends included."""
    log_probs: Tensor
    """``(B, N)`` float32 nats, of all tokens up to the length."""
    scores: Tensor
    """``(B, N)`` float32: ``log_probs`` divided by the length penalty."""


def length_penalty(lengths: Tensor, alpha: float) -> Tensor:
    r"""Return ``((5 + length) / 6) ** alpha`` (Wu et al. 2016, arXiv:1609.08144, eq. 14).

    A log-probability is divided by it, so that of two equally likely sequences the longer one is
    preferred; ``alpha = 0`` compares log-probabilities as they are.

    >>> length_penalty(torch.tensor([1, 7]), 1.0)
    tensor([1., 2.])
    """
    return ((5 + lengths) / 6) ** alpha


@torch.no_grad()
def greedy_search(
    state: State, extend: Extend, first: Tensor, *, end: int, max_tokens: int
) -> Hypotheses:
    """Take the likeliest token at every step, until each row has ended.

    Args:
        state: Of B rows; it is extended.
        extend: Appends ``(B, 1)`` tokens to ``state`` and returns the logits, ``(B, 1, V)``.
        first: ``(B,)`` int64, what every sequence begins with; it is no part of the result.
        end: The token that ends a sequence.
        max_tokens: T, the most tokens; a sequence that has not ended by then stays open.

    Returns:
        One hypothesis a row; ``scores`` are the log-probabilities.
    """
    return beam_search(state, extend, first, end=end, max_tokens=max_tokens, beams=1, alpha=0.0)


@torch.no_grad()
def beam_search(
    state: State,
    extend: Extend,
    first: Tensor,
    *,
    end: int,
    max_tokens: int,
    beams: int = 4,
    alpha: float = 0.6,
) -> Hypotheses:
    """Keep the ``beams`` best sequences of each row at every step.

    Sequences are compared by their log-probability divided by ``length_penalty``. One that has
    ended keeps its place among the beams while none better takes it, and the search stops when all
    have. With one beam this is greedy search; with ``V ** max_tokens`` beams nothing is ever left
    out, and the result is the true best.

    Args:
        state: Of B rows; it is extended, and holds ``B * beams`` rows afterwards.
        extend: Appends ``(R, 1)`` tokens to ``state`` and returns the logits, ``(R, 1, V)``.
        first: ``(B,)`` int64, what every sequence begins with; it is no part of the result.
        end: The token that ends a sequence.
        max_tokens: T, the most tokens; a sequence that has not ended by then stays open.
        beams: N, at least 1.
        alpha: Of the length penalty; the paper of 2017 takes 0.6 with 4 beams.

    Returns:
        N hypotheses a row, best first. Where there are fewer sequences than beams, the last ones
        have log-probability -inf.

    Raises:
        ValueError: A number is too small, or ``end`` is no token.
    """
    for name, given in {"beams": beams, "max_tokens": max_tokens}.items():
        if given < 1:
            raise ValueError(f"{name}={given}: give at least 1")
    rows, device = len(first), first.device
    state.repeat(beams)
    last = first.repeat_interleave(beams)
    tokens = torch.full((rows, beams, max_tokens), end, dtype=torch.int64, device=device)
    lengths = torch.zeros((rows, beams), dtype=torch.int64, device=device)
    log_probs = torch.full((rows, beams), -torch.inf, device=device)
    log_probs[:, 0] = 0.0  # all beams begin alike, so all but one are shut
    ended = torch.zeros((rows, beams), dtype=torch.bool, device=device)
    offsets = torch.arange(rows, device=device)[:, None] * beams
    for t in range(max_tokens):
        logits = extend(last[:, None])[:, -1].float()
        vocabulary = logits.shape[-1]
        if not 0 <= end < vocabulary:
            raise ValueError(f"end={end}: the model's tokens go from 0 to {vocabulary - 1}")
        following = torch.log_softmax(logits, -1).view(rows, beams, vocabulary)
        following = log_probs[..., None] + following
        kept = torch.full_like(following, -torch.inf)  # what has ended goes on as it is, once
        kept[..., end] = log_probs
        following = torch.where(ended[..., None], kept, following)
        grown = lengths + (~ended).long()
        ranked = following / length_penalty(grown, alpha)[..., None]
        best = ranked.flatten(1).topk(beams, dim=1).indices
        source, token = best // vocabulary, best % vocabulary
        tokens = tokens.gather(1, source[..., None].expand_as(tokens))
        tokens[..., t] = token
        log_probs = following.flatten(1).gather(1, best)
        lengths, ended = grown.gather(1, source), ended.gather(1, source) | (token == end)
        last = token.flatten()
        if bool((ended | log_probs.isneginf()).all()):
            break
        if t + 1 < max_tokens and beams > 1:
            state.select((offsets + source).flatten())
    scores = log_probs / length_penalty(lengths, alpha)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return Hypotheses(
        tokens=tokens.gather(1, order[..., None].expand_as(tokens)),
        lengths=lengths.gather(1, order),
        log_probs=log_probs.gather(1, order),
        scores=scores.gather(1, order),
    )
