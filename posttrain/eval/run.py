"""Samples completions to questions, scores them, and sums up what they show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from launch import streams
from posttrain.data.chat import encode_prompt
from posttrain.data.tasks.base import Prompt
from posttrain.eval.intervals import Interval, mean_with_interval
from posttrain.eval.pass_at_k import maj_at_k, pass_at_k
from posttrain.rewards.answer import extract_answer
from posttrain.rewards.base import Reward, Sample
from posttrain.rewards.checking import checked, reward_name
from posttrain.rollout.batch import Rollout, Sampling
from posttrain.rollout.samples import as_samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from launch.runtime import Runtime

__all__ = ["Evaluation", "Generates", "evaluate", "reasons"]


class Generates(Protocol):
    """What an evaluation needs of an engine."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Rollout:
        """Return ``group_size`` completions of each prompt."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluation:
    """S completions to each of N questions, and how they were judged."""

    samples: tuple[tuple[Sample, ...], ...]
    """N times S, in the order of the questions."""
    correct: Tensor
    """``(N, S)`` bool, the accuracy reward is exactly 1."""
    greedy_samples: tuple[Sample, ...] = ()
    """N completions at temperature 0, or none if they were not asked for."""
    greedy_correct: Tensor | None = None
    """``(N,)`` bool."""

    @property
    def correct_counts(self) -> Tensor:
        """``(N,)`` int64, how many of a question's completions are correct."""
        return self.correct.sum(dim=1)

    @property
    def answers(self) -> list[list[str | None]]:
        """N times S final answers, None where a completion has none."""
        return [[extract_answer(s.completion) for s in row] for row in self.samples]

    @property
    def unparseable(self) -> Tensor:
        """``(N, S)`` bool, has no final answer."""
        return torch.tensor([[answer is None for answer in row] for row in self.answers])

    @property
    def lengths(self) -> Tensor:
        """``(N, S)`` int64 tokens, the stop token included."""
        return torch.tensor([[len(s.tokens) for s in row] for row in self.samples])

    @property
    def truncated(self) -> Tensor:
        """``(N, S)`` bool, cut at ``max_tokens``."""
        return torch.tensor([[s.finish_reason == "length" for s in row] for row in self.samples])

    @property
    def reasoning(self) -> Tensor:
        """``(N, S)`` bool, reasons before it answers."""
        return torch.tensor([[reasons(s) for s in row] for row in self.samples])

    def summary(
        self, *, k: int = 8, seed: int = 0, level: float = 0.95
    ) -> dict[str, float | Interval]:
        """Return the figures of a report, in order.

        ``pass@1``, ``maj@k``, ``pass@k`` and, if asked for, ``greedy`` with their intervals over
        questions; ``length/mean`` in tokens, ``length/truncated``, ``share/reasoning``, and
        ``accuracy/reasoning``, the accuracy among responses that reason (NaN if none does).
        ``maj@k`` is NaN for a task whose right completions have no ``<answer>`` to vote with.

        Args:
            k: Of maj@k and pass@k; 1 leaves them out, being pass@1 once more.
            seed: Of the bootstrap.
            level: Share of the bootstrap means that an interval covers.
        """
        drawn = self.correct.shape[1]
        if k > drawn:
            raise ValueError(
                f"k={k}, but {drawn} samples were drawn for each question: "
                "lower k or raise samples_per_prompt"
            )
        shares: dict[str, Tensor | None] = {"pass@1": self._pass_at(1)}
        if k > 1:
            shares |= {f"maj@{k}": self.majority(k), f"pass@{k}": self._pass_at(k)}
        if self.greedy_correct is not None:
            shares["greedy"] = self.greedy_correct.double()
        reasoning = self.reasoning
        return {
            **{
                name: math.nan
                if values is None
                else mean_with_interval(values, seed=seed, level=level)
                for name, values in shares.items()
            },
            "length/mean": self.lengths.double().mean().item(),
            "length/truncated": self.truncated.double().mean().item(),
            "share/reasoning": reasoning.double().mean().item(),
            "accuracy/reasoning": self.correct[reasoning].double().mean().item(),
        }

    def majority(self, k: int) -> Tensor | None:
        """Return ``(N,)`` maj@k; None where what is correct stands in no place for answers."""
        answers = self.answers
        if self.correct.any() and not any(a is not None for row in answers for a in row):
            return None
        return maj_at_k(answers, [row[0].answer for row in self.samples], k)

    def _pass_at(self, k: int) -> Tensor:
        count, drawn = self.correct.shape
        return pass_at_k(torch.full((count,), drawn), self.correct_counts, k)


def evaluate(
    engine: Generates,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    reward: Reward,
    sampling: Sampling,
    *,
    samples_per_prompt: int,
    seed: int,
    batch: int,
    greedy: bool = False,
    run: Runtime | None = None,
) -> Evaluation:
    """Draw completions to every prompt and judge them. Neither ``batch`` nor processes change it.

    Args:
        engine: Of the model.
        tokenizer: Of the model.
        prompts: N questions.
        reward: Says what is correct, by exactly 1; a task's own reward, not one with format parts.
        sampling: How completions are drawn.
        samples_per_prompt: S.
        seed: Question i draws by ``(seed, "evaluate", i)``.
        batch: Prompts that the engine gets at once; memory only.
        greedy: Also decode each question once at temperature 0.
        run: Shares the questions among its processes; each gets the whole result.

    Raises:
        ValueError: No prompt, or a count below 1.
        UsageError: The reward raised or returned something else than numbers.
    """
    for name, value in (("samples_per_prompt", samples_per_prompt), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}={value}: at least 1 is needed")
    if len(prompts) == 0:
        raise ValueError("got no prompts: an evaluation needs at least one question")

    def judge(indices: range, how: Sampling, size: int) -> list[tuple[Sample, bool]]:
        drawn: list[Sample] = []
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            encoded = [encode_prompt(tokenizer, prompts[index]) for index in part]
            seeds = streams.keys(seed, "evaluate", 0, part)
            rollout = engine.generate(encoded, how, size, seeds=seeds)
            answers = [prompts[index].answer for index in part]
            drawn += as_samples(tokenizer, encoded, answers, rollout, size)
        if not drawn:
            return []
        scores = checked(reward_name(reward), reward, drawn)
        return list(zip(drawn, (scores == 1).tolist(), strict=True))

    share = range(len(prompts)) if run is None else run.share(len(prompts))
    judged = _everywhere(judge, run, share, sampling, samples_per_prompt)
    size = samples_per_prompt
    rows = [judged[start : start + size] for start in range(0, len(judged), size)]
    best: list[tuple[Sample, bool]] = []
    if greedy:
        best = _everywhere(judge, run, share, replace(sampling, temperature=0.0), 1)
    return Evaluation(
        samples=tuple(tuple(sample for sample, _ in row) for row in rows),
        correct=torch.tensor([[right for _, right in row] for row in rows]),
        greedy_samples=tuple(sample for sample, _ in best),
        greedy_correct=torch.tensor([right for _, right in best]) if greedy else None,
    )


class _Judge(Protocol):
    def __call__(
        self, indices: range, how: Sampling, size: int, /
    ) -> list[tuple[Sample, bool]]: ...


def _everywhere(
    judge: _Judge, run: Runtime | None, share: range, how: Sampling, size: int
) -> list[tuple[Sample, bool]]:
    """Judge this process's share and gather all; an error on one process is raised on every one.

    Shares are contiguous and gathered in order of rank, so the questions stay in order.
    """
    if run is None or run.world_size == 1:
        return judge(share, how, size)
    mine: list[tuple[Sample, bool]] = []
    error: Exception | None = None
    try:
        mine = judge(share, how, size)
    except Exception as caught:  # raised below, on all processes: the others would wait for ever
        error = caught
    errors = run.gather_objects([None if error is None else f"process {run.rank}: {error}"])
    if error is not None:
        raise error
    first = next(filter(None, errors), None)
    if first is not None:
        raise RuntimeError(f"the evaluation failed on {first}")
    return run.gather_objects(mine)


def reasons(sample: Sample) -> bool:
    """Whether a response thinks aloud: a closed think element that is not blank, in linear time.

    The prompt may have opened the element already, as R1's template does.

    >>> reasons(Sample(prompt="1+1?", completion="<think>one more than 1</think>2", answer="2"))
    True
    >>> reasons(Sample(prompt="1+1?", completion="<think> </think>2", answer="2"))
    False
    """
    closed = sample.completion.split("</think>")[:-1]
    for index, part in enumerate(closed):
        _, opened, thought = part.partition("<think>")
        if not opened and index == 0 and sample.prompt.rstrip().endswith("<think>"):
            thought = part
        if thought.replace("<think>", "").strip():
            return True
    return False
