"""What a step is trained on: completions and their rewards, groups without spread replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from launch.metrics import Mean, Metric
from launch.runtime import Runtime
from launch.streams import key
from posttrain.data.chat import encode_prompt
from posttrain.data.order import shuffled
from posttrain.data.tasks import Prompt
from posttrain.eval.run import Generates
from posttrain.models import LanguageModel
from posttrain.rewards import Reward, Sample, score
from posttrain.rewards.late import reward_at
from posttrain.rollout import Rollout, Sampling
from posttrain.rollout.samples import as_samples

__all__ = ["Collected", "Collector", "Collects", "DynamicSampling", "replace_rows", "spreads"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicSampling:
    """Groups of equal rewards are replaced (DAPO, Yu et al. 2025, arXiv:2503.14476, section 3.2).

    Such a group has no gradient, so without this a step trains on fewer prompts the better the
    policy is. Each place in the batch draws another prompt until its group has a spread; DAPO
    draws whole batches until enough groups have one, which gives the same distribution. A place
    draws by its own stream, so the number of processes changes nothing.
    """

    rounds: int = 10
    """Most times that a place draws anew; what has no spread then stays, and is counted."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(
                f"rounds={self.rounds}: a group is replaced at least once; to replace none, set "
                "dynamic_sampling to null"
            )


class Collects(Protocol):
    """What a collector asks of a loop's config."""

    @property
    def prompts_per_step(self) -> int:
        """P, over all processes."""
        ...

    @property
    def group_size(self) -> int:
        """G, completions of each prompt."""
        ...

    @property
    def dynamic_sampling(self) -> DynamicSampling | None:
        """Whether groups of equal rewards are replaced."""
        ...

    @property
    def reward_seconds(self) -> float:
        """Wall-clock limit of one call of the reward."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Collected:
    """The completions of a step on this process; row ``p * group_size + g`` of each field."""

    rollout: Rollout
    samples: list[Sample]
    scores: Tensor
    """``(B,)`` rewards."""
    parts: dict[str, Tensor]
    """``(B,)`` each, the rewards that a weighted sum is made of."""
    figures: dict[str, Metric]
    """What is logged of replaced groups."""


class Collector:
    """Samples and scores the groups of a step; every draw is keyed by its place in the run.

    Args:
        cfg: Of the loop.
        engine: Samples.
        lm: Encodes prompts and decodes completions.
        prompts: Of the task.
        reward: Scores.
        run: Knows this process's share.
    """

    def __init__(
        self,
        cfg: Collects,
        engine: Generates,
        lm: LanguageModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        reward: Reward,
        run: Runtime,
    ) -> None:
        self.cfg, self.engine, self.lm, self.run = cfg, engine, lm, run
        self.prompts, self.sampling, self.reward = prompts, sampling, reward
        self._step = 1

    def collect(self, step: int, *, serves: int = 1, max_tokens: int | None = None) -> Collected:
        """Return this process's share of the rollout that is drawn at ``step``.

        Args:
            step: Also says which reward counts, if that changes.
            serves: The steps that it is drawn for.
            max_tokens: In place of the sampling's own.
        """
        self._step = step
        if max_tokens is not None:
            self.sampling = replace(self.sampling, max_tokens=max_tokens)
        share = self.run.share(self.cfg.prompts_per_step * serves)
        places = [(step - 1) * self.cfg.prompts_per_step + i for i in share]
        first = self._sample(places, 0)
        if self.cfg.dynamic_sampling is None:
            return first
        return self._filled(first, places, self.cfg.dynamic_sampling.rounds)

    def _filled(self, found: Collected, places: list[int], rounds: int) -> Collected:
        """Replace groups without spread, ``rounds`` times at most."""
        size, before = self.cfg.group_size, found.scores
        sampled, replaced = len(places), 0
        for number in range(1, rounds + 1):
            flat = [i for i, spread in enumerate(spreads(found.scores, size)) if not spread]
            if not flat:
                break
            sampled += len(flat)
            other = self._sample([places[i] for i in flat], number)
            useful = [j for j, spread in enumerate(spreads(other.scores, size)) if spread]
            replaced += len(useful)
            found = _with_groups(found, [flat[j] for j in useful], other, useful, size)
        figures: dict[str, Metric] = {
            "groups/replaced": Mean(replaced, len(places)),
            "groups/sampled": Mean(sampled, len(places)),
            "reward/sampled": Mean(before.sum(), len(before)),
        }
        return replace(found, figures=figures)

    def _sample(self, places: list[int], number: int) -> Collected:
        """Sample one group at each place, in round ``number``; 0 is the ordinary one."""
        cfg, run, size = self.cfg, self.run, self.cfg.group_size
        with run.phase("generate"):
            chosen = [self.prompts[i] for i in self._order(places, number)]
            encoded = [encode_prompt(self.lm.tokenizer, prompt) for prompt in chosen]
            stream = f"rollout/{number}" if number else "rollout"
            seeds = run.seeds(stream, 0, places)
            rollout = self.engine.generate(encoded, self.sampling, size, seeds=seeds)
        with run.phase("reward"):
            answers = [prompt.answer for prompt in chosen]
            samples = as_samples(self.lm.tokenizer, encoded, answers, rollout, size)
            scores, parts = score(
                reward_at(self.reward, self._step), samples, seconds=cfg.reward_seconds
            )
        return Collected(rollout=rollout, samples=samples, scores=scores, parts=parts, figures={})

    def _order(self, places: list[int], number: int) -> list[int]:
        """Return the prompts at ``places`` of the endless shuffled epochs.

        Replacements have epochs of their own, so that without any nothing changes.
        """
        size, seed = len(self.prompts), self.run.seed
        if number == 0:  # contiguous
            return shuffled(size, places[0], len(places), seed) if places else []
        assert self.cfg.dynamic_sampling is not None
        rounds, seed = self.cfg.dynamic_sampling.rounds, key(seed, "replacements")
        return [shuffled(size, place * rounds + number - 1, 1, seed)[0] for place in places]


def spreads(scores: Tensor, group_size: int) -> list[bool]:
    """Return of each group whether its rewards differ.

    >>> spreads(torch.tensor([1.0, 0.0, 1.0, 1.0]), 2)
    [True, False]
    """
    groups = scores.view(-1, group_size)
    return (groups != groups[:, :1]).any(1).tolist()


def _with_groups(
    found: Collected, into: list[int], other: Collected, groups: list[int], group_size: int
) -> Collected:
    """Return ``found`` with its groups ``into`` replaced by the ``groups`` of ``other``."""
    if not into:
        return found
    to = [i * group_size + g for i in into for g in range(group_size)]
    of = [j * group_size + g for j in groups for g in range(group_size)]
    samples = list(found.samples)
    for i, j in zip(to, of, strict=True):
        samples[i] = other.samples[j]
    return Collected(
        rollout=replace_rows(found.rollout, to, other.rollout, of),
        samples=samples,
        scores=_put(found.scores, to, other.scores, of),
        parts={name: _put(x, to, other.parts[name], of) for name, x in found.parts.items()},
        figures=found.figures,
    )


def replace_rows(rollout: Rollout, to: list[int], other: Rollout, of: list[int]) -> Rollout:
    """Return ``rollout`` with its rows ``to`` replaced by the rows ``of`` another one."""
    columns = max(rollout.tokens.shape[1], other.tokens.shape[1])

    def put(x: Tensor, y: Tensor) -> Tensor:
        wide = [torch.nn.functional.pad(z, (0, columns - z.shape[1])) for z in (x, y)]
        return _put(wide[0], to, wide[1], of)

    reasons = list(rollout.finish_reasons)
    for i, j in zip(to, of, strict=True):
        reasons[i] = other.finish_reasons[j]
    old = put(rollout.old_log_probs, other.old_log_probs)
    same = rollout.tempered_log_probs is rollout.old_log_probs
    return Rollout(
        tokens=put(rollout.tokens, other.tokens),
        mask=put(rollout.mask, other.mask),
        old_log_probs=old,
        tempered_log_probs=old
        if same
        else put(rollout.tempered_log_probs, other.tempered_log_probs),
        finish_reasons=reasons,
        tool_calls=_picked(rollout.tool_calls, to, other.tool_calls, of),
        tool_errors=_picked(rollout.tool_errors, to, other.tool_errors, of),
    )


def _picked(counts: Sequence[int], to: list[int], other: Sequence[int], of: list[int]) -> list[int]:
    found = list(counts)
    if found:
        for i, j in zip(to, of, strict=True):
            found[i] = other[j]
    return found


def _put(x: Tensor, to: list[int], y: Tensor, of: list[int]) -> Tensor:
    x = x.clone()
    x[torch.tensor(to, device=x.device)] = y[torch.tensor(of, device=y.device)].to(x.dtype)
    return x
