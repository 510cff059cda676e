"""Sampling from `generative`'s decoders, whose mixers keep a state each of their own kind.

Only prompts of equal length run together, so that no model ever sees padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from generative.attention.decoder_lm import DecoderLM
from posttrain.rollout.sampling import draw

__all__ = ["StatefulDecoding", "stateful_turns"]

_WORTH = 0.75


class StatefulDecoding:
    """Completions of prompts of equal length; slot ``p * G + g`` is completion g of prompt p."""

    draw = staticmethod(draw)

    def __init__(
        self, model: DecoderLM, prompts: Sequence[Tensor], group_size: int, max_tokens: int
    ) -> None:
        self.model = model
        self.tokens = torch.stack(list(prompts)).to(next(model.parameters()).device)
        self.group = group_size
        rows, length = self.tokens.shape
        self.state = model.new_state(rows, length + max_tokens)

    def start(self) -> Tensor:
        """Run each prompt once; return ``(B, V)`` float32 logits."""
        logits = self.model.extend(self.tokens, self.state)[:, -1].float()
        self.state.repeat(self.group)
        return logits.repeat_interleave(self.group, 0)

    def advance(self, tokens: Tensor) -> Tensor:
        """Append a token to every slot; return the next ``(slots, V)`` float32 logits."""
        return self.model.extend(tokens[:, None], self.state)[:, -1].float()

    def compact(self, alive: Tensor) -> Tensor | None:
        """Let finished slots go once a quarter of them has finished."""
        if int(alive.sum()) > _WORTH * len(alive):
            return None
        slots = alive.nonzero().view(-1)
        self.state.select(slots)
        return slots


def stateful_turns(
    model: DecoderLM,
    turns: Sequence[Sequence[int]],
    rows: Sequence[Tensor],
    group_size: int,
    max_tokens: int,
    most_bytes: int,
) -> Iterator[list[int]]:
    """Split prompts of equal length further, so that the states of those run together fit."""
    for turn in turns:
        one = model.new_state(1, len(rows[turn[0]]) + max_tokens).nbytes * group_size
        at_once = max(1, most_bytes // max(one, 1))
        for first in range(0, len(turn), at_once):
            yield list(turn[first : first + at_once])
