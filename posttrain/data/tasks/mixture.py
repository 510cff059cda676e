"""Several tasks as one, by weights, and weights that follow what a model can learn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from posttrain.data.tasks.asking import Lazily
from posttrain.data.tasks.base import Prompt, Task
from posttrain.rewards.base import Reward, Sample

__all__ = [
    "MixedAnswer",
    "MixtureReward",
    "TaskMixture",
    "check_weights",
    "curriculum_weights",
    "interleaved",
]


class MixedAnswer(str):
    """A gold answer that remembers which task of a mixture it is of."""

    __slots__ = ("answer", "task")
    answer: str
    task: str

    def __new__(cls, answer: str, task: str) -> Self:
        """Keep the answer as it is, since a task's reward may ask more of it than its text."""
        made = super().__new__(cls, answer)
        made.answer, made.task = answer, task
        return made

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        return type(self), (self.answer, self.task)


@dataclass
class MixtureReward:
    """Scores each sample by its own task's reward, and counts how often each task succeeds."""

    rewards: Mapping[str, Reward]
    seen: dict[str, int] = field(default_factory=dict, init=False, compare=False, repr=False)
    """Samples of each task so far, of this process."""
    solved: dict[str, int] = field(default_factory=dict, init=False, compare=False, repr=False)
    """Those of them whose reward is exactly 1."""

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32; each task's reward is called once.

        Raises:
            TypeError: A sample's answer is not of this mixture.
        """
        rows: dict[str, list[int]] = {}
        for row, sample in enumerate(samples):
            if not isinstance(sample.answer, MixedAnswer) or sample.answer.task not in self.rewards:
                raise TypeError(
                    f"sample {row} has a {type(sample.answer).__name__} as answer, expected the "
                    "MixedAnswer of its prompt: hand Prompt.answer on as it is"
                )
            rows.setdefault(sample.answer.task, []).append(row)
        found = torch.zeros(len(samples), dtype=torch.float32)
        for task, places in rows.items():
            own = [
                replace(samples[row], answer=getattr(samples[row].answer, "answer", ""))
                for row in places
            ]
            values = torch.as_tensor(self.rewards[task](own), dtype=torch.float32)
            found[places] = values
            self.seen[task] = self.seen.get(task, 0) + len(places)
            self.solved[task] = self.solved.get(task, 0) + int((values == 1).sum())
        return found

    @property
    def timeouts(self) -> int:
        """Samples that hit a limit so far, over all rewards that count them."""
        return sum(getattr(reward, "timeouts", 0) for reward in self.rewards.values())

    def success_rates(self) -> dict[str, float]:
        """Return the share solved of each task that was seen."""
        return {task: self.solved[task] / seen for task, seen in self.seen.items()}


@dataclass(frozen=True)
class TaskMixture:
    """Tasks in proportion to their weights, in every stretch of the training prompts.

    Prompt i is of the task that lags furthest behind its share of the first i + 1; a task's own
    prompts come in their order, again from the start when they are used up.

    >>> from posttrain.data.tasks import Arithmetic
    >>> small, large = Arithmetic(largest=1), Arithmetic(largest=9)
    >>> mixture = TaskMixture({"small": (1.0, small), "large": (3.0, large)}, size=8)
    >>> [prompt.metadata["task"] for prompt in mixture.train()]
    ['large', 'small', 'large', 'large', 'large', 'small', 'large', 'large']
    """

    tasks: Mapping[str, tuple[float, Task]]
    """Name to (weight, task); weights are positive and need not sum to 1."""
    size: int = 20_000
    """Prompts to train on."""
    heldout_each: int = 128
    """Held-out prompts of each task at the most, one task after the other."""
    _reward: list[MixtureReward] = field(
        default_factory=list, init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if not isinstance(self.tasks, Mapping) or not self.tasks:
            raise ValueError('a mixture needs tasks, such as {"sums": (1.0, Arithmetic())}')
        for name, pair in self.tasks.items():
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise ValueError(f"task {name}: expected (weight, task), got {pair!r}")
        check_weights({name: weight for name, (weight, _) in self.tasks.items()})
        if self.size < 1 or self.heldout_each < 0:
            raise ValueError(
                f"size={self.size}, heldout_each={self.heldout_each}: expected at least 1 prompt "
                "to train on and no negative number held out"
            )

    @property
    def reward(self) -> MixtureReward:
        """The same object each time, so that its counts grow."""
        if not self._reward:
            rewards = {name: task.reward for name, (_, task) in self.tasks.items()}
            self._reward.append(MixtureReward(rewards))
        return self._reward[0]

    def train(self) -> Sequence[Prompt]:
        """Return ``size`` prompts; their metadata names the task."""
        prompts = {name: task.train() for name, (_, task) in self.tasks.items()}
        for name, own in prompts.items():
            if not len(own):
                raise ValueError(f"task {name} has no prompts to train on: leave it out")
        weights = [float(weight) for weight, _ in self.tasks.values()]
        places = interleaved(weights, self.size)
        names = list(self.tasks)

        def make(index: int) -> Prompt:
            part, count = places[index]
            own = prompts[names[part]]
            return _marked(own[count % len(own)], names[part])

        return Lazily(self.size, make)

    def heldout(self) -> Sequence[Prompt]:
        """Return the first held-out prompts of each task."""
        return [
            _marked(prompt, name)
            for name, (_, task) in self.tasks.items()
            for prompt in task.heldout()[: self.heldout_each]
        ]

    def reweighted(self, success_rates: Mapping[str, float], *, floor: float = 0.1) -> TaskMixture:
        """Return the mixture with ``curriculum_weights``, for the next stage of a curriculum.

        The order of prompts is a function of the mixture, so that a run resumes as if it had never
        stopped; hence the weights change between runs or stages, not within one.
        """
        weights = {name: weight for name, (weight, _) in self.tasks.items()}
        weights = curriculum_weights(weights, success_rates, floor=floor)
        tasks = {name: (weights[name], task) for name, (_, task) in self.tasks.items()}
        return TaskMixture(tasks, self.size, self.heldout_each)


def curriculum_weights(
    weights: Mapping[str, float], success_rates: Mapping[str, float], *, floor: float = 0.1
) -> dict[str, float]:
    """Weight tasks by how much there is to learn from them.

        weight_i * (floor + (1 - floor) * 4 p_i (1 - p_i))

    p (1 - p) is the variance of a reward of zeros and ones, what a group of samples can teach; it
    is the learnability of Foster and Foerster 2025 (arXiv:2502.12272). The floor keeps a task that
    is solved, or not yet solvable, in sight. A task without a rate keeps its weight.

    Args:
        weights: Of the tasks, positive.
        success_rates: Share of samples solved, by task.
        floor: Part of its weight that a task keeps whatever its rate, in (0, 1].

    Raises:
        ValueError: A weight or the floor is not positive, a rate is no share, or of no task.

    >>> curriculum_weights({"a": 1.0, "b": 1.0, "c": 2.0}, {"a": 0.5, "b": 1.0}, floor=0.25)
    {'a': 1.0, 'b': 0.25, 'c': 2.0}
    """
    check_weights(weights)
    if not 0 < floor <= 1:
        raise ValueError(f"floor={floor}: give a share above 0, or a task may vanish for good")
    for name, rate in success_rates.items():
        if name not in weights:
            raise ValueError(f"success rate of {name!r}: the tasks are {', '.join(weights)}")
        if not 0 <= rate <= 1:
            raise ValueError(f"success rate of {name!r} is {rate}: expected a share in 0..1")
    rates = {name: success_rates.get(name, 0.5) for name in weights}
    return {
        name: weight * (floor + (1 - floor) * 4 * rates[name] * (1 - rates[name]))
        for name, weight in weights.items()
    }


def check_weights(weights: Mapping[str, float], *, kind: str = "task") -> None:
    """Raise ValueError unless every weight is a positive number; errors name what is weighed."""
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight < math.inf:
            raise ValueError(
                f"{kind} {name}: the weight {weight!r} is not a positive number; leave the {kind} "
                "out instead"
            )


def interleaved(weights: Sequence[float], size: int) -> list[tuple[int, int]]:
    """Return (part, how many of it came before) for each of ``size`` places.

    A place goes to the part that lags furthest behind its share; of equals, to the first.

    >>> interleaved([2.0, 1.0], 4)
    [(0, 0), (1, 0), (0, 1), (0, 2)]
    """
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    counts = [0] * len(weights)
    places = []
    for index in range(size):
        part = max(range(len(shares)), key=lambda p: (index + 1) * shares[p] - counts[p])
        places.append((part, counts[part]))
        counts[part] += 1
    return places


def _marked(prompt: Prompt, task: str) -> Prompt:
    answer = MixedAnswer(prompt.answer, task)
    return replace(prompt, answer=answer, metadata={**prompt.metadata, "task": task})
