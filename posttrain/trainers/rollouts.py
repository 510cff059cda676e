"""Between engine, reward and objective: rollouts as samples, as batches, and as figures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from launch.metrics import Mean, Metric
from posttrain.data.tasks.base import Prompt
from posttrain.models import LanguageModel
from posttrain.rewards import Sample
from posttrain.rollout import Rollout, RolloutBatch, Sampling

__all__ = [
    "FlatGroups",
    "as_batch",
    "as_samples",
    "rollout_figures",
    "sample_rows",
    "stopping",
    "trimmed",
]


def stopping(sampling: Sampling, lm: LanguageModel) -> Sampling:
    """Return ``sampling`` with the model's own stop tokens where it names none."""
    return sampling if sampling.stop_tokens else replace(sampling, stop_tokens=lm.stop_tokens)


def as_samples(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[Sequence[int]],
    rollout: Rollout,
    group_size: int,
) -> list[Sample]:
    """Return each completion as a reward sees it, in the rollout's order."""
    texts = [lm.tokenizer.decode(tokens) for tokens in encoded]
    samples = []
    for row, tokens in enumerate(rollout.completions()):
        reason = rollout.finish_reasons[row]
        shown = tokens[:-1] if reason == "stop" else tokens
        samples.append(
            Sample(
                prompt=texts[row // group_size],
                completion=lm.tokenizer.decode(shown, skip_special_tokens=True),
                answer=prompts[row // group_size].answer,
                tokens=tuple(tokens),
                finish_reason=reason,
            )
        )
    return samples


def as_batch(rollout: Rollout, advantages: Tensor) -> RolloutBatch:
    """Return the rollout as objectives take it; ``advantages`` is ``(B,)``, one a completion."""
    mask = rollout.mask
    return RolloutBatch(
        tokens=rollout.tokens,
        mask=mask,
        old_log_probs=rollout.tempered_log_probs,
        advantages=torch.where(mask, advantages.to(mask.device)[:, None], 0.0),
        engine_log_probs=rollout.tempered_log_probs,
    )


def trimmed(rows: RolloutBatch) -> RolloutBatch:
    """Return ``rows`` without the columns on the right where none of them counts."""
    columns = rows.mask.any(0).nonzero()
    width = int(columns[-1]) + 1 if len(columns) else min(1, rows.tokens.shape[1])
    fields = {
        name: getattr(rows, name)[:, :width]
        for name in ("tokens", "mask", "old_log_probs", "advantages")
    }
    optional = {
        name: None if (x := getattr(rows, name)) is None else x[:, :width]
        for name in ("ref_log_probs", "engine_log_probs")
    }
    return RolloutBatch(**fields, **optional)


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
    }


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
    """Warns, once, when for many steps no group had a spread of rewards to learn from."""

    def __init__(self, patience: int = 10) -> None:
        self.patience = patience
        self.steps = 0

    def see(self, flat: float, reward: float) -> None:
        """Take a step's share of groups without spread and its mean reward."""
        self.steps = self.steps + 1 if flat == 1.0 else 0
        if self.steps == self.patience:
            warnings.warn(
                f"for {self.patience} steps every group had equal rewards (mean {reward:.3g}), so "
                "nothing was learnt: if the reward is at its floor, try easier problems, a longer "
                "sft, a larger group_size or temperature, or a reward that pays in part; at its "
                "ceiling, harder problems",
                RuntimeWarning,
                stacklevel=2,
            )
