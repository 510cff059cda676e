"""Reward models drive the searches through the same tokens that the engine draws."""

from __future__ import annotations

import pytest

from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.process_reward_models import ProcessRewardModel, process_model
from posttrain.reward_models import outcome_model
from posttrain.rollout import Engine, Sampling
from posttrain.search import (
    ByStep,
    OutcomeScores,
    StateValue,
    StepScores,
    beam_search,
    best_of_n,
    last,
    mcts,
    minimum,
)
from posttrain.search.language import Completions, LanguageSteps, Tokens, line_breaks

TEXTS = [f"{a}\n{b}\n" for a in range(10) for b in range(10)]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=40), layers=1, width=16, heads=2, seed=4)


@pytest.fixture(scope="module")
def prm(lm: LanguageModel) -> ProcessRewardModel:
    return process_model(lm, seed=2)


@pytest.fixture(scope="module")
def prompt(lm: LanguageModel) -> Tokens:
    return tuple(lm.tokenizer.encode("1\n"))


def test_best_of_n_takes_the_completion_with_the_highest_score(
    lm: LanguageModel, prm: ProcessRewardModel, prompt: Tokens
) -> None:
    draw = Completions(Engine(lm.model), Sampling(max_tokens=6, stop_tokens=lm.stop_tokens))
    model = outcome_model(lm, seed=1)
    best = best_of_n(prompt, draw, OutcomeScores(model, prompt), n=5, seed=0)
    expected = model.scores([prompt + x for x in best.completions])
    assert list(best.scores) == expected.tolist()
    assert best.index == int(expected.argmax())
    steps = StepScores(prm, prompt, line_breaks(lm.tokenizer))
    by_step = best_of_n(prompt, draw, ByStep(steps, minimum), n=5, seed=0)
    assert by_step.completions == best.completions
    assert list(by_step.scores) == [min(row) for row in steps(best.completions)]


def test_steps_are_scored_at_their_breaks_and_at_the_end(
    lm: LanguageModel, prm: ProcessRewardModel, prompt: Tokens
) -> None:
    breaks = line_breaks(lm.tokenizer)
    state = tuple(lm.tokenizer.encode("4\n5\n6"))
    places = [len(prompt) + i for i, token in enumerate(state) if token in breaks]
    assert len(places) == 2
    [expected] = prm.probabilities([prompt + state], [[*places, len(prompt) + len(state) - 1]])
    assert StepScores(prm, prompt, breaks)([state]) == [expected]


def test_beam_search_and_tree_search_run_on_a_process_reward_model(
    lm: LanguageModel, prm: ProcessRewardModel, prompt: Tokens
) -> None:
    breaks = line_breaks(lm.tokenizer)
    score = ByStep(StepScores(prm, prompt, breaks), last)
    value = StateValue(score, empty=0.25)
    problem = LanguageSteps(
        engine=Engine(lm.model),
        prompt=prompt,
        sampling=Sampling(max_tokens=8, stop_tokens=lm.stop_tokens),
        breaks=breaks,
        value=value,
    )
    beams = beam_search((), problem, score, width=2, expansions=2, max_steps=8, seed=0)
    assert beams.scores == tuple(score(beams.states))
    found = mcts((), problem, simulations=6, exploration=1.0, seed=0)
    assert sum(found.visits.values()) == 6
    assert value(()) == 0.25
    assert value(beams.best) == pytest.approx(beams.scores[0], abs=1e-6)
