"""A language model's completion as a search problem: states are the tokens written so far.

A step ends with a line break, or with the completion. What the engine draws for a state depends on
the state and a seed alone, so searches are reproducible in any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from launch import streams
from posttrain.eval.run import Generates
from posttrain.rewards.base import Reward, Sample
from posttrain.rollout.batch import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Completions",
    "LanguageSteps",
    "RolloutValue",
    "Tokens",
    "Verified",
    "finished",
    "line_breaks",
    "rollout_seed",
]

Tokens = tuple[int, ...]
"""The tokens of a completion so far, without those of its prompt."""


def line_breaks(tokenizer: PreTrainedTokenizerBase) -> Tokens:
    r"""Return the ids of all tokens whose text holds a line break: ``"\n"``, but also ``".\n"``."""
    ids = sorted(set(tokenizer.get_vocab().values()))
    texts = tokenizer.batch_decode([[token] for token in ids], skip_special_tokens=False)
    return tuple(token for token, text in zip(ids, texts, strict=True) if "\n" in text)


@dataclass(eq=False, kw_only=True)
class LanguageSteps:
    """The steps of one completion, for ``mcts``, ``grow`` and ``beam_search``; begin at ``()``.

    ``expand`` draws ``branches`` steps and merges equal ones; an action's prior is its share of
    the draws, an estimate of the policy that needs no second forward pass.
    """

    engine: Generates
    prompt: Tokens
    """Encoded, as the engine takes it."""
    sampling: Sampling
    """``max_tokens`` of the whole completion; its stop tokens make a state terminal."""
    breaks: Tokens
    """Tokens that end a step, such as ``line_breaks`` finds."""
    value: Callable[[Tokens], float]
    """``Verified``, ``RolloutValue``, or a value or process reward model over the tokens."""
    branches: int = 4
    """Steps that ``expand`` draws."""
    step_tokens: int = 64
    """A step without a line break is cut here."""
    seed: int = 0
    spent: int = field(default=0, init=False)
    """Tokens drawn so far; those of the value function are not among them."""

    def __post_init__(self) -> None:
        for name in ("branches", "step_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")

    def expand(self, state: Tokens, /) -> list[tuple[Tokens, float]]:
        """Return the different steps among ``branches`` draws, the most frequent first."""
        [drawn] = self.propose([state], self.branches, seeds=[_seed(self.seed, "expand", state)])
        counts = Counter(after[len(state) :] for after in drawn)
        return [(action, n / self.branches) for action, n in counts.most_common()]

    def step(self, state: Tokens, action: Tokens, /) -> Tokens:
        """Return the tokens of both."""
        return state + action

    def evaluate(self, state: Tokens, /) -> float:
        """Return ``value(state)``."""
        return self.value(state)

    def is_terminal(self, state: Tokens, /) -> bool:
        """Tell whether a stop token was written, or ``max_tokens`` are."""
        ended = bool(state) and state[-1] in self.sampling.stop_tokens
        return ended or len(state) >= self.sampling.max_tokens

    def propose(
        self, states: Sequence[Tokens], count: int, *, seeds: Sequence[int]
    ) -> list[list[Tokens]]:
        """Return ``count`` continuations of each state by one step; equal ones are kept."""
        found: list[list[Tokens]] = [[] for _ in states]
        rooms = [min(self.step_tokens, self.sampling.max_tokens - len(state)) for state in states]
        stops = tuple(dict.fromkeys((*self.sampling.stop_tokens, *self.breaks)))
        for room in sorted(set(rooms)):  # nearly always one
            rows = [i for i, own in enumerate(rooms) if own == room]
            rollout = self.engine.generate(
                [self.prompt + states[i] for i in rows],
                replace(self.sampling, max_tokens=room, stop_tokens=stops),
                count,
                seeds=[seeds[i] for i in rows],
            )
            for place, tokens in enumerate(rollout.completions()):
                self.spent += len(tokens)
                row = rows[place // count]
                found[row].append((*states[row], *tokens))
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """The reward of a finished completion; ``unfinished`` for any other state."""

    tokenizer: PreTrainedTokenizerBase
    prompt: Tokens
    answer: str
    reward: Reward
    stop_tokens: Tokens
    max_tokens: int
    unfinished: float = 0.0

    def __call__(self, state: Tokens, /) -> float:
        """Return the reward of a state."""
        stopped = bool(state) and state[-1] in self.stop_tokens
        if not stopped and len(state) < self.max_tokens:
            return self.unfinished
        return float(self.reward([self.sample(state)])[0])

    def sample(self, state: Tokens) -> Sample:
        """Return a finished completion as rewards see it."""
        stopped = bool(state) and state[-1] in self.stop_tokens
        shown = list(state[:-1] if stopped else state)
        return Sample(
            prompt=self.tokenizer.decode(list(self.prompt)),
            completion=self.tokenizer.decode(shown, skip_special_tokens=False),
            answer=self.answer,
            tokens=state,
            prompt_tokens=self.prompt,
            finish_reason="stop" if stopped else "length",
        )


@dataclass(eq=False, kw_only=True)
class RolloutValue:
    """Mean reward of ``count`` completions of a state: the simulation of classic tree search.

    A terminal state has its own reward. It is also the soft estimate of a step's value of
    Math-Shepherd (Wang et al. 2023, arXiv:2312.08935, eq. 4).
    """

    engine: Generates
    sampling: Sampling
    verified: Verified
    count: int = 4
    seed: int = 0
    spent: int = field(default=0, init=False)
    """Tokens drawn so far."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count}: a mean needs at least one completion")

    def __call__(self, state: Tokens, /) -> float:
        """Return the value of a state."""
        start = (self.verified.prompt, state)
        seeds = [rollout_seed(self.seed, state)]
        [ends] = finished(self.engine, self.sampling, [start], self.count, seeds=seeds)
        self.spent += sum(len(end) - len(state) for end in ends)
        return sum(self.verified(end) for end in ends) / len(ends)


def finished(
    engine: Generates,
    sampling: Sampling,
    starts: Sequence[tuple[Tokens, Tokens]],
    count: int,
    *,
    seeds: Sequence[int],
) -> list[list[Tokens]]:
    """Return ``count`` completions that go on from each start, all drawn in one batch.

    Args:
        engine: Draws them.
        sampling: ``max_tokens`` of a whole completion, what is written included.
        starts: Each a prompt and what is written of its completion.
        count: How many of each; a completion that is over already is itself, once.
        seeds: One for each start; what is drawn depends on it and the start alone.
    """
    lefts = [sampling.max_tokens - len(state) for _, state in starts]
    alive = [
        i
        for i, (_, state) in enumerate(starts)
        if lefts[i] > 0 and not (state and state[-1] in sampling.stop_tokens)
    ]
    found: list[list[Tokens]] = [[state] for _, state in starts]
    if not alive:
        return found
    rollout = engine.generate(
        [starts[i][0] + starts[i][1] for i in alive],
        replace(sampling, max_tokens=max(lefts[i] for i in alive)),
        count,
        seeds=[seeds[i] for i in alive],
    )
    drawn = rollout.completions()
    for place, i in enumerate(alive):
        own = drawn[place * count : (place + 1) * count]
        found[i] = [(*starts[i][1], *tokens[: lefts[i]]) for tokens in own]
    return found


def rollout_seed(seed: int, state: Tokens) -> int:
    """Return the seed of what goes on from a state."""
    return _seed(seed, "rollout", state)


@dataclass(frozen=True, slots=True)
class Completions:
    """Draws whole completions, as ``best_of_n`` asks for them; a prompt is a tuple of tokens."""

    engine: Generates
    sampling: Sampling

    def __call__(self, prompt: Tokens, count: int, seed: int, /) -> list[Tokens]:
        """Return ``count`` completions, the stop token included."""
        rollout = self.engine.generate([prompt], self.sampling, count, seeds=[seed])
        return [tuple(tokens) for tokens in rollout.completions()]


def _seed(seed: int, name: str, state: Tokens) -> int:
    return streams.key(seed, f"{name}/{','.join(map(str, state))}")
