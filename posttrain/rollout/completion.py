"""The loop over tokens: what every engine shares, whichever way it computes logits."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from posttrain.rollout.batch import Sampling
from posttrain.rollout.sampling import uniforms

__all__ = ["Completions", "Session", "complete"]

_NUMBERS = 64  # tokens' worth of random numbers at a time


class Session(Protocol):
    """Sequences being extended in step. A slot is one of them; finished ones may be let go."""

    def start(self) -> Tensor:
        """Run the prompts; return ``(B, V)`` float32 logits, a slot per completion."""
        ...

    def advance(self, tokens: Tensor) -> Tensor:
        """Append ``(slots,)`` tokens; return the next ``(slots, V)`` float32 logits."""
        ...

    def draw(
        self, logits: Tensor, uniform: Tensor, sampling: Sampling
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw one token per slot, as ``sampling.draw`` does."""
        ...

    def compact(self, alive: Tensor) -> Tensor | None:
        """Let finished slots go, if that is worth its cost.

        Args:
            alive: ``(slots,)`` bool, at least one True.

        Returns:
            Which old slot each slot now is, every alive one among them exactly once; None if
            all stayed.
        """
        ...


class Completions:
    """What was sampled so far, by token and completion."""

    __slots__ = ("lengths", "log_probs", "stopped", "tempered", "tokens")

    def __init__(self, rows: int, sampling: Sampling, device: torch.device) -> None:
        shape = (sampling.max_tokens, rows)
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.log_probs = torch.zeros(shape, device=device)
        same = sampling.temperature == 1.0
        self.tempered = self.log_probs if same else torch.zeros(shape, device=device)
        self.lengths = torch.full((rows,), sampling.max_tokens, device=device)
        self.stopped = torch.zeros(rows, dtype=torch.bool, device=device)


def complete(
    session: Session, rows: Tensor, keys: Tensor, sampling: Sampling, into: Completions
) -> None:
    """Sample until every completion of the session has stopped or is full.

    Args:
        session: Its slots are the completions ``rows``, in order.
        rows: ``(slots,)`` int64, of the rows of ``into``.
        keys: ``(B,)`` of ``completion_keys``, of all rows.
        sampling: How.
        into: Receives the results; beyond a completion's length it holds anything.
    """
    logits = session.start()
    keys = keys[rows]
    alive = torch.ones_like(rows, dtype=torch.bool)
    stops = torch.zeros(logits.shape[1], dtype=torch.bool, device=rows.device)
    known = [token for token in sampling.stop_tokens if 0 <= token < len(stops)]
    stops[known] = True
    for t in range(sampling.max_tokens):
        if t % _NUMBERS == 0:
            numbers = uniforms(keys, t, min(t + _NUMBERS, sampling.max_tokens))
        tokens, log_probs, tempered = session.draw(logits, numbers[t % _NUMBERS], sampling)
        into.tokens[t].index_copy_(0, rows, tokens)
        into.log_probs[t].index_copy_(0, rows, log_probs)
        if into.tempered is not into.log_probs:
            into.tempered[t].index_copy_(0, rows, tempered)
        if known:
            ended = rows[stops[tokens] & alive]
            into.lengths[ended] = t + 1
            into.stopped[ended] = True
            alive &= ~stops[tokens]
        if t + 1 == sampling.max_tokens or (known and not bool(alive.any())):
            return
        if known:
            slots = session.compact(alive)
            if slots is not None:
                rows, alive, tokens = rows[slots], alive[slots], tokens[slots]
                keys, numbers = keys[slots], numbers[:, slots]
        logits = session.advance(tokens)
