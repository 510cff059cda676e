"""Completions as rewards see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain.rewards.base import Sample
from posttrain.rollout.batch import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["as_samples"]


def as_samples(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[str],
    rollout: Rollout,
    group_size: int,
) -> list[Sample]:
    """Return each completion with its text, in the rollout's order.

    Tool output is part of a completion. Special tokens are shown, since tags such as ``<think>``
    may be among them; the token that stopped a completion is not.

    Args:
        tokenizer: Of the model.
        prompts: P token sequences that were continued.
        answers: P gold answers.
        rollout: ``P * group_size`` completions.
        group_size: Completions of each prompt.
    """
    asked = [tuple(map(int, tokens)) for tokens in prompts]
    texts = [tokenizer.decode(list(tokens)) for tokens in asked]
    samples = []
    for row, tokens in enumerate(rollout.continuations()):
        reason = rollout.finish_reasons[row]
        shown = tokens[:-1] if reason == "stop" else tokens
        samples.append(
            Sample(
                prompt=texts[row // group_size],
                completion=tokenizer.decode(shown, skip_special_tokens=False),
                answer=answers[row // group_size],
                tokens=tuple(tokens),
                prompt_tokens=asked[row // group_size],
                finish_reason=reason,
            )
        )
    return samples
