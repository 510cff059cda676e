"""Between engine, reward and objective: rollouts as samples, as batches, and as figures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from launch.metrics import Mean, Metric
from posttrain.eval.run import reasons
from posttrain.models import LanguageModel
from posttrain.rewards import Sample
from posttrain.rollout import Rollout, RolloutBatch, Sampling

__all__ = [
    "FlatGroups",
    "as_batch",
    "rollout_figures",
    "sample_rows",
    "stopping",
    "tool_figures",
    "trained_mask",
]


def stopping(sampling: Sampling, lm: LanguageModel) -> Sampling:
    """Return ``sampling`` with the model's own stop tokens where it names none."""
    return sampling if sampling.stop_tokens else replace(sampling, stop_tokens=lm.stop_tokens)


def trained_mask(rollout: Rollout, mask_truncated: bool) -> Tensor:
    """Return ``(B, T)`` bool, the tokens that are trained on.

    With ``mask_truncated`` a completion that was cut off counts nowhere (DAPO's overlong
    filtering): whether it would have been right is not known.
    """
    if not mask_truncated:
        return rollout.mask
    whole = torch.tensor([reason != "length" for reason in rollout.finish_reasons])
    return rollout.mask & whole.to(rollout.mask.device)[:, None]


def as_batch(rollout: Rollout, mask: Tensor | None = None) -> RolloutBatch:
    """Return the rollout as objectives take it, with advantages of 0.

    Args:
        rollout: What the engine sampled.
        mask: ``(B, T)`` bool, the tokens to train on; None takes all that were sampled.
    """
    mask = rollout.mask if mask is None else mask
    log_probs = rollout.tempered_log_probs
    if mask is not rollout.mask:
        log_probs = torch.where(mask, log_probs, 0.0)
    return RolloutBatch(
        tokens=rollout.tokens,
        mask=mask,
        old_log_probs=log_probs,
        advantages=torch.zeros_like(log_probs),
        engine_log_probs=log_probs,
    )


def rollout_figures(
    rollout: Rollout, samples: Sequence[Sample], scores: Tensor, group_size: int
) -> dict[str, Metric]:
    """Return what is logged of the completions and their rewards."""
    rows = len(samples)
    groups = scores.view(rows // group_size, group_size)
    flat = (groups == groups[:, :1]).all(1)
    cut = sum(reason == "length" for reason in rollout.finish_reasons)
    return {
        "reward": Mean(scores.sum(), rows),
        "groups/flat": Mean(flat.sum(), len(groups)),
        "length/mean": Mean(rollout.mask.sum(), rows),
        "length/truncated": Mean(cut, rows),
        "share/reasoning": Mean(sum(map(reasons, samples)), rows),
    }


def tool_figures(rollout: Rollout) -> dict[str, Metric]:
    """Return what is logged of tool calls: answered ones and failed ones, a completion."""
    rows = len(rollout.finish_reasons)
    calls = {"tools/calls": rollout.tool_calls, "tools/errors": rollout.tool_errors}
    return {name: Mean(sum(counts), rows) for name, counts in calls.items()}


def sample_rows(samples: Sequence[Sample], scores: Tensor) -> list[Mapping[str, object]]:
    """Return samples as they are written to ``samples.jsonl``."""
    return [
        {
            "prompt": sample.prompt,
            "completion": sample.completion,
            "answer": sample.answer,
            "reward": score,
            "finish_reason": sample.finish_reason,
        }
        for sample, score in zip(samples, scores.tolist(), strict=False)
    ]


class FlatGroups:
    """Warns, once, when nothing is learnt because no group has a spread of rewards.

    Args:
        patience: Steps without any spread before it does.
        rounds: How often a group without spread is replaced; then the first that stays warns too.
    """

    def __init__(self, patience: int = 10, rounds: int = 0) -> None:
        self.patience, self.rounds = patience, rounds
        self.steps = 0
        self.unfilled = False

    def see(self, flat: float, reward: float) -> None:
        """Take a step's share of groups without spread and its mean reward."""
        self.steps = self.steps + 1 if flat == 1.0 else 0
        if self.steps == self.patience:
            warnings.warn(
                f"for {self.patience} steps every group had equal rewards (mean {reward:.3g}), so "
                f"nothing was learnt: {_REMEDY}",
                RuntimeWarning,
                stacklevel=2,
            )
        if self.rounds and flat > 0 and not self.unfilled:
            self.unfilled = True
            warnings.warn(
                f"{flat:.0%} of the groups had equal rewards after being replaced {self.rounds} "
                f"times (mean reward {reward:.3g}), so the batch is not full: raise "
                f"dynamic_sampling.rounds, or: {_REMEDY}",
                RuntimeWarning,
                stacklevel=2,
            )


_REMEDY = (
    "if the reward is at its floor, try easier problems, a longer sft, a larger group_size or "
    "temperature, or a reward that pays in part; at its ceiling, harder problems"
)
