"""A model answers prompts, and of each a right and a wrong answer become a pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.errors import UsageError
from launch.metrics import Mean
from launch.runtime import Runtime
from posttrain.data.contrasts import COUNTED, contrast, contrast_row
from posttrain.data.tasks import Prompt
from posttrain.models import LanguageModel
from posttrain.rewards import Reward
from posttrain.trainers.collection import Collected
from posttrain.trainers.rounds import RoundsConfig, sampled_rounds, summed_counts

__all__ = ["ContrastsConfig", "sample_contrasts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastsConfig(RoundsConfig):
    """Pairs for a reward model, drawn from the policy that it is to judge."""

    pairs_per_prompt: int = 1
    """Most pairs of a prompt, each of other completions."""

    def __post_init__(self) -> None:
        RoundsConfig.__post_init__(self)
        if self.pairs_per_prompt < 1:
            raise ValueError(f"pairs_per_prompt={self.pairs_per_prompt}: give at least 1")
        if self.group_size < 2:
            raise ValueError(f"group_size={self.group_size}: a pair is of two completions")


def sample_contrasts(
    cfg: ContrastsConfig,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    reward: Reward,
    run: Runtime,
) -> tuple[list[dict[str, Any]], Mapping[str, int]]:
    """Return pairs of right and wrong completions as rows, and counts of what was drawn.

    Rows stand in the order in which prompts are drawn; the number of processes changes nothing.

    Args:
        cfg: How much is sampled.
        lm: Is put on the run's device.
        prompts: Chats; their answers are for the reward.
        reward: Says what is right.
        run: Its table shows what was dropped and why.

    Raises:
        UsageError: There are too few prompts, or of none both a right and a wrong completion.
    """
    kept = _Kept()
    for step, found, asked in sampled_rounds(
        cfg, lm, prompts, reward, run, kept=kept, headline=("right", "pairs")
    ):
        rows, counts = paired(cfg, found, [prompts[i] for i in asked], run.seed)
        kept.add(run.gather_objects(rows), summed_counts(counts, run))
        drawn = len(found.samples)
        figures = {
            "right": Mean((found.scores >= cfg.right).sum(), drawn),
            "length/mean": Mean(sum(len(s.tokens) for s in found.samples), drawn),
        }
        run.log(step, {**figures, "pairs": float(len(kept.rows))})
    said = ", ".join(f"{count} {name}" for name, count in kept.counts.items())
    if not kept.rows:
        raise UsageError(
            f"no prompt has both a right and a wrong completion ({said}), so a reward model has "
            "nothing to learn from: take problems that the model gets right now and then, a larger "
            "group_size, or a larger sampling.max_tokens if most completions are truncated"
        )
    run.table(
        "Completions in pairs", [{"what": name, "number": n} for name, n in kept.counts.items()]
    )
    run.print(f"Pairs of right and wrong completions: {said}")
    return kept.rows, dict(kept.counts)


def paired(
    cfg: ContrastsConfig, found: Collected, prompts: Sequence[Prompt], seed: int
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the pairs of each group as rows, and counts; ``prompts`` has one a completion."""
    rows, counts = [], Counter(dict.fromkeys(COUNTED, 0))
    for first in range(0, len(found.samples), cfg.group_size):
        group = found.samples[first : first + cfg.group_size]
        scores = found.scores[first : first + cfg.group_size]
        pairs = contrast(group, scores, most=cfg.pairs_per_prompt, seed=seed, right=cfg.right)
        counts.update(pairs.counts)
        for chosen, rejected in pairs.pairs:
            texts = group[chosen].completion, group[rejected].completion
            rows.append(contrast_row(prompts[first], *texts))
    return rows, counts


class _Kept:
    """The pairs so far; saved in a checkpoint as plain values."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()

    def add(self, rows: Sequence[dict[str, Any]], counts: Mapping[str, int]) -> None:
        self.rows += rows
        self.counts.update(counts)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "counts": dict(self.counts)}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.rows = list(state_dict["rows"])
        self.counts = Counter(state_dict["counts"])
