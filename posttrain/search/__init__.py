"""Search over answers and steps: majority, best of n, beams and trees."""

from posttrain.search.beam import Beams, beam_search
from posttrain.search.best_of_n import Best, ByStep, best_of_n, last, minimum, product
from posttrain.search.mcts import Search, grow, mcts, puct, uct
from posttrain.search.reward_models import OutcomeScores, StateValue, StepScores
from posttrain.search.self_consistency import Vote, self_consistency

__all__ = [
    "Beams",
    "Best",
    "ByStep",
    "OutcomeScores",
    "Search",
    "StateValue",
    "StepScores",
    "Vote",
    "beam_search",
    "best_of_n",
    "grow",
    "last",
    "mcts",
    "minimum",
    "product",
    "puct",
    "self_consistency",
    "uct",
]
