"""Searches over the steps of completions, run on many problems side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from posttrain.data.chat import encode_prompt
from posttrain.data.tasks import Prompt
from posttrain.eval.run import Generates
from posttrain.models import LanguageModel
from posttrain.process_reward_models import JudgesSteps
from posttrain.recipes.scorers import Reduce
from posttrain.rollout import Sampling
from posttrain.search.beam import beam_search
from posttrain.search.best_of_n import ByStep, Scores, last
from posttrain.search.language import LanguageSteps, Tokens, line_breaks
from posttrain.search.mcts import Selection, grow, most_visited, puct
from posttrain.search.reward_models import StateValue, StepScores
from posttrain.search.together import Together, TogetherEngine, TogetherSteps

__all__ = ["Beam", "Found", "StepSearch", "Tree", "search_all"]


class StepSearch(Protocol):
    """Finds a completion, step by step, with more effort the larger the budget."""

    @property
    def budgets(self) -> tuple[int, ...]:
        """Return what it is tried with."""
        ...

    @property
    def branches(self) -> int:
        """Return how many steps are drawn from a state."""
        ...

    @property
    def reduce(self) -> Reduce:
        """Return what makes one score of those of a state's steps."""
        ...

    def find(
        self, budget: int, steps: LanguageSteps, score: Scores[Tokens], seed: int, /
    ) -> Tokens:
        """Return the completion that was found; ``steps.spent`` has counted its tokens."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Beam:
    """``beam_search``; a budget is a width."""

    budgets: tuple[int, ...] = (1, 2, 4)
    branches: int = 4
    """Steps drawn from each state of the beam."""
    max_steps: int = 16
    reduce: Reduce = last

    def find(
        self, budget: int, steps: LanguageSteps, score: Scores[Tokens], seed: int, /
    ) -> Tokens:
        """Return the best of the beam that is left."""
        return beam_search(
            (),
            steps,
            score,
            width=budget,
            expansions=self.branches,
            max_steps=self.max_steps,
            seed=seed,
        ).best


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """Monte Carlo tree search; a budget is a number of simulations.

    The answer is what the most visited actions lead to. Where they end before the completion does,
    another tree grows from there.
    """

    budgets: tuple[int, ...] = (2, 4, 8, 16)
    branches: int = 4
    """Steps drawn where a state is expanded."""
    exploration: float = 1.0
    selection: Selection = puct
    reduce: Reduce = last

    def find(
        self, budget: int, steps: LanguageSteps, score: Scores[Tokens], seed: int, /
    ) -> Tokens:
        """Return the completion that the most visited actions write."""
        state: Tokens = ()
        while not steps.is_terminal(state):
            tree = grow(
                state,
                steps,
                simulations=budget,
                exploration=self.exploration,
                seed=seed,
                selection=self.selection,
            )
            state = most_visited(tree)
        return state


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found for one problem."""

    completion: Tokens
    spent: int
    """All tokens that the policy drew on the way."""


def search_all(
    search: StepSearch,
    budget: int,
    lm: LanguageModel,
    engine: Generates,
    judge: JudgesSteps,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    step_tokens: int,
    seeds: Sequence[int],
    at_once: int = 256,
) -> list[Found]:
    """Return what a search finds for each prompt; a problem's depends on its seed alone.

    Args:
        search: And how it is set up.
        budget: One that it understands.
        lm: Its tokenizer encodes the prompts.
        engine: Draws the steps.
        judge: The process reward model.
        prompts: Problems.
        sampling: ``max_tokens`` of a whole completion, and its stop tokens.
        step_tokens: A step without a line break is cut here.
        seeds: One for each prompt.
        at_once: Searches that run side by side; memory only.
    """
    breaks = line_breaks(lm.tokenizer)
    found: list[Found] = []
    for start in range(0, len(prompts), at_once):
        together = Together()
        shared = TogetherEngine(together, engine), TogetherSteps(together, judge)

        def of_problem(
            prompt: Prompt, seed: int, shared: tuple[Generates, JudgesSteps] = shared
        ) -> Callable[[], Found]:
            asked = tuple(encode_prompt(lm.tokenizer, prompt))
            score = ByStep(StepScores(shared[1], asked, breaks), search.reduce)
            steps = LanguageSteps(
                engine=shared[0],
                prompt=asked,
                sampling=sampling,
                breaks=breaks,
                value=StateValue(score),
                branches=search.branches,
                step_tokens=step_tokens,
                seed=seed,
            )
            return lambda: Found(search.find(budget, steps, score, seed), steps.spent)

        part = slice(start, start + at_once)
        pairs = zip(prompts[part], seeds[part], strict=True)
        found += together.run([of_problem(prompt, seed) for prompt, seed in pairs])
    return found
