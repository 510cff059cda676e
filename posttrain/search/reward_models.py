"""Reward models as the searches ask for them: over the tokens of one prompt's completions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from posttrain.data.step_labels import step_ends
from posttrain.process_reward_models import JudgesSteps
from posttrain.reward_models import RewardModel
from posttrain.search.best_of_n import Scores
from posttrain.search.language import Tokens

__all__ = ["OutcomeScores", "StateValue", "StepScores"]


@dataclass(frozen=True, slots=True)
class OutcomeScores:
    """An outcome reward model over completions, for ``best_of_n``."""

    model: RewardModel
    prompt: Tokens
    """Encoded, as the engine takes it."""

    def __call__(self, completions: Sequence[Tokens], /) -> list[float]:
        """Return the score of each completion."""
        return self.model.scores([self.prompt + tuple(x) for x in completions]).tolist()


@dataclass(frozen=True, slots=True)
class StepScores:
    """A process reward model over completions or what there is of them: the ``prm`` of ``ByStep``.

    A step ends at a line break, and what is written ends with its last token, whole or not.
    """

    model: JudgesSteps
    prompt: Tokens
    """Encoded, as the engine takes it."""
    breaks: Collection[int]
    """Tokens that end a step, such as ``line_breaks`` finds."""

    def __call__(self, completions: Sequence[Tokens], /) -> list[list[float]]:
        """Return the probability of each step of each completion."""
        rows = [self.prompt + tuple(x) for x in completions]
        ends = [[len(self.prompt) + end for end in step_ends(x, self.breaks)] for x in completions]
        return self.model.probabilities(rows, ends)


@dataclass(frozen=True, slots=True)
class StateValue:
    """A score over completions as the value of one state, for ``mcts`` through ``LanguageSteps``.

    ``StateValue(ByStep(StepScores(...), last))`` values a state by its last step.
    """

    score: Scores[Tokens]
    empty: float = 0.5
    """Value of the state in which nothing is written."""

    def __call__(self, state: Tokens, /) -> float:
        """Return the value of a state."""
        return float(self.score([state])[0]) if state else self.empty
