from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.rewards import Sample
from posttrain.rollout import Engine, Rollout, Sampling
from posttrain.search import beam_search, best_of_n, grow, mcts
from posttrain.search.language import (
    Completions,
    LanguageSteps,
    RolloutValue,
    Tokens,
    Verified,
    line_breaks,
)
from posttrain.search.tree_data import trajectories

STOP, BREAK = 0, 1


class Scripted:
    """Writes two letters from 2 and 3, a line break, and, after two lines, a stop token."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Rollout:
        assert seeds is not None
        self.calls.append((len(prompts), sampling.max_tokens, group_size))
        rows = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            assert list(prompt[:2]) == [9, 9]
            draws = torch.Generator().manual_seed(seed % 2**31)
            for _ in range(group_size):
                written = list(prompt[2:])
                while len(written) - len(prompt[2:]) < sampling.max_tokens:
                    if len(written) % 3 == 2:
                        token = BREAK if len(written) < 5 else STOP
                    else:
                        token = int(torch.randint(2, 4, (), generator=draws))
                    written.append(token)
                    if token in sampling.stop_tokens:
                        break
                rows.append((list(prompt), written[len(prompt) - 2 :]))
        return rollout(rows)


def rollout(rows: list[tuple[list[int], list[int]]]) -> Rollout:
    width = max(len(prompt) + len(tokens) for prompt, tokens in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(rows):
        tokens[i, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        mask[i, len(prompt) : len(prompt) + len(completion)] = True
    zeros = torch.zeros(tokens.shape)
    return Rollout(
        tokens=tokens,
        mask=mask,
        old_log_probs=zeros,
        tempered_log_probs=zeros,
        finish_reasons=["stop"] * len(rows),
    )


def threes(state: Tokens) -> float:
    """How many threes there are: the best completion is 3 3 break 3 3 stop."""
    return float(state.count(3))


def problem(**changes: object) -> LanguageSteps:
    settings: dict[str, Any] = {
        "engine": Scripted(),
        "prompt": (9, 9),
        "sampling": Sampling(max_tokens=8, stop_tokens=(STOP,)),
        "breaks": (BREAK,),
        "value": threes,
        "branches": 24,
    }
    return LanguageSteps(**(settings | changes))


def test_expand_merges_equal_steps_into_priors() -> None:
    steps = problem()
    found = steps.expand(())
    assert sorted(action for action, _ in found) == [(a, b, BREAK) for a in (2, 3) for b in (2, 3)]
    assert sum(prior for _, prior in found) == 1.0
    assert [prior for _, prior in found] == sorted((p for _, p in found), reverse=True)
    assert steps.spent == 24 * 3
    assert steps.expand(()) == found  # the state and the seed decide
    assert problem(seed=1).expand(()) != found
    last = steps.expand((2, 2, BREAK))
    assert {action[2:] for action, _ in last} == {(STOP,)}
    assert all(steps.is_terminal((2, 2, BREAK, *action)) for action, _ in last)


def test_steps_are_cut_at_their_length_and_at_the_completions() -> None:
    steps = problem(step_tokens=1, branches=1)
    [(action, prior)] = steps.expand(())
    assert (len(action), prior) == (1, 1.0)
    short = problem(sampling=Sampling(max_tokens=4, stop_tokens=(STOP,)))
    drawn = short.propose([(), (2, 2, BREAK)], 2, seeds=[1, 2])
    assert [len(state) for row in drawn for state in row] == [3, 3, 4, 4]
    assert short.is_terminal(drawn[1][0])
    assert not short.is_terminal(drawn[0][0])
    assert sorted(short.engine.calls) == [(1, 1, 2), (1, 4, 2)]  # type: ignore[attr-defined]  # a Scripted


def test_mcts_and_beam_find_the_best_completion() -> None:
    best = (3, 3, BREAK, 3, 3, STOP)
    assert mcts((), problem(), simulations=60, exploration=1.0, seed=0).best_action == best[:3]
    tree = grow((), problem(), simulations=60, exploration=1.0, seed=0)
    assert trajectories(tree, min_evaluation=4.0)[0].end == best
    scored = beam_search(
        (), problem(), lambda states: [threes(s) for s in states],
        width=2, expansions=12, max_steps=4, seed=0,
    )  # fmt: skip
    assert scored.best == best
    assert scored.finished


def test_best_of_n_takes_whole_completions() -> None:
    draw = Completions(Scripted(), Sampling(max_tokens=8, stop_tokens=(STOP,)))
    found = best_of_n((9, 9), draw, lambda rows: [threes(row) for row in rows], n=60, seed=0)
    assert found.completion == (3, 3, BREAK, 3, 3, STOP)


class Decodes:
    """A tokenizer whose tokens are digits."""

    def decode(self, tokens: Sequence[int], **_: object) -> str:
        return "".join(map(str, tokens))


def verified(seen: list[Sample] | None = None, **changes: object) -> Verified:
    seen = [] if seen is None else seen

    def reward(samples: Sequence[Sample]) -> torch.Tensor:
        seen.extend(samples)
        return torch.tensor([float(s.completion.startswith(s.answer)) for s in samples])

    settings: dict[str, Any] = {
        "tokenizer": Decodes(), "prompt": (9, 9), "answer": "33", "reward": reward,
        "stop_tokens": (STOP,), "max_tokens": 8,
    }  # fmt: skip
    return Verified(**(settings | changes))


def test_verifier_pays_finished_completions_alone() -> None:
    seen: list[Sample] = []
    value = verified(seen=seen, unfinished=0.25)
    assert value((3, 3, BREAK)) == 0.25
    assert value((3, 3, STOP)) == 1.0
    assert value((2, 2, STOP)) == 0.0
    assert value((3,) * 8) == 1.0
    assert seen[0] == Sample(
        prompt="99",
        completion="33",
        answer="33",
        tokens=(3, 3, STOP),
        prompt_tokens=(9, 9),
    )
    assert seen[2].finish_reason == "length"


def test_value_by_rollouts_is_the_mean_reward_of_completions() -> None:
    sampling = Sampling(max_tokens=8, stop_tokens=(STOP,))
    value = RolloutValue(engine=Scripted(), sampling=sampling, verified=verified(), count=50)
    assert value((3, 3, BREAK)) == 1.0
    assert value((2, 3, BREAK)) == 0.0
    assert value.spent == 2 * 50 * 3
    root = value(())
    assert 0.1 < root < 0.4  # a quarter begins with 33
    assert value(()) == root
    assert value((3, 3, STOP)) == 1.0  # its own reward; nothing is drawn
    assert value.spent == 2 * 50 * 3 + 2 * 50 * 6


@pytest.mark.parametrize("name", ["branches", "step_tokens"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        problem(**{name: 0})
    with pytest.raises(ValueError, match="count=0"):
        RolloutValue(
            engine=Scripted(), sampling=Sampling(max_tokens=8), verified=verified(), count=0
        )


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    tokenizer = train_tokenizer(["1 + 1\n= 2\n<answer>2</answer>\n", "ab\ncd.\nef"])
    model = tiny_model(tokenizer, layers=1, width=16, heads=2)
    assert isinstance(model.model, nn.Module)
    return model


def test_line_breaks_are_the_tokens_that_hold_one(lm: LanguageModel) -> None:
    breaks = line_breaks(lm.tokenizer)
    texts = {token: lm.tokenizer.decode([token]) for token in lm.tokenizer.get_vocab().values()}
    assert set(breaks) == {token for token, text in texts.items() if "\n" in text}
    assert breaks


def test_a_real_engine_is_searched_and_equal_seeds_give_equal_searches(lm: LanguageModel) -> None:
    def searched(seed: int) -> tuple[Any, int]:
        steps = problem(
            engine=Engine(lm.model),
            prompt=tuple(lm.tokenizer.encode("1 + 1\n")),
            sampling=Sampling(max_tokens=12, stop_tokens=lm.stop_tokens),
            breaks=line_breaks(lm.tokenizer),
            value=lambda state: float(len(set(state))),
            branches=3,
            step_tokens=5,
            seed=seed,
        )
        return mcts((), steps, simulations=8, exploration=1.0, seed=seed), steps.spent

    found, spent = searched(0)
    assert sum(found.visits.values()) == 8
    assert spent > 0
    assert searched(0) == (found, spent)
    assert searched(1) != (found, spent)
