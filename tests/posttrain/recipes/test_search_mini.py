"""Searches against tokens: exact counts, fair votes, and a run that is killed goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch.config import to_yaml
from launch.errors import UsageError
from launch.runtime import Runtime
from posttrain.data.tasks import Prompt
from posttrain.eval import Interval
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.recipes import search_mini as stages
from posttrain.recipes.search_mini import SearchJob
from posttrain.recipes.search_report import Drawn, Point, auc_within, compared
from posttrain.recipes.sources import FromScratch
from posttrain.recipes.step_searches import Beam, Tree, search_all
from posttrain.recipes.step_sources import RolledOutSums
from posttrain.recipes.tiny import sums
from posttrain.recipes.tiny_search import search_mini
from posttrain.rollout import Rollout, Sampling
from posttrain.search import last, minimum
from posttrain.search.language import line_breaks

PROMPTS = [Prompt(answer="", text=text) for text in ("1", "22", "333")]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model(train_tokenizer(["1\n22\n333\n"]), layers=1, width=16, heads=2)


class TwoLines:
    """Writes a token and a line break, then two tokens and the stop token: 5 in all."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lines, self.stop = line_breaks(lm.tokenizer), lm.stop_tokens[0]
        self.drawn = 0

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Rollout:
        assert seeds is not None
        width = max(map(len, prompts)) + 3
        tokens = torch.zeros(len(prompts) * group_size, width, dtype=torch.int64)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for row in range(len(tokens)):
            prompt, seed = list(prompts[row // group_size]), seeds[row // group_size]
            letter = 3 + (seed + row) % 2
            second = any(token in self.lines for token in prompt)
            written = [letter, 3, self.stop] if second else [letter, self.lines[0]]
            tokens[row, : len(prompt) + len(written)] = torch.tensor(prompt + written)
            mask[row, len(prompt) : len(prompt) + len(written)] = True
            self.drawn += len(written)
        zeros = torch.zeros(tokens.shape)
        return Rollout(
            tokens=tokens,
            mask=mask,
            old_log_probs=zeros,
            tempered_log_probs=zeros,
            finish_reasons=["stop"] * len(tokens),
        )


class Even:
    def probabilities(
        self, rows: Sequence[Sequence[int]], ends: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        return [[0.5 + 0.1 * (row[end - 1] % 2) for end in own] for row, own in zip(rows, ends)]  # noqa: B905


@pytest.mark.parametrize(
    ("search", "budget", "spent"),
    [
        # The root gets 2 x 3 lines of 2 tokens, then 2 states 3 lines of 3: 12 + 18.
        (Beam(branches=3), 2, 30),
        # A width of 1: 3 lines of 2, then 3 lines of 3.
        (Beam(branches=3), 1, 15),
        # A simulation expands the root (4 lines of 2) and takes a step; the next tree expands
        # that state (4 lines of 3), and its step ends the completion.
        (Tree(branches=4), 1, 20),
    ],
)
def test_all_tokens_drawn_count_and_nothing_else(
    lm: LanguageModel, search: Beam | Tree, budget: int, spent: int
) -> None:
    engine = TwoLines(lm)
    found = search_all(
        search,
        budget,
        lm,
        engine,
        Even(),
        PROMPTS,
        Sampling(max_tokens=9, stop_tokens=lm.stop_tokens),
        step_tokens=4,
        seeds=[0, 1, 2],
        at_once=2,
    )
    assert [x.spent for x in found] == [spent] * 3
    assert engine.drawn == 3 * spent
    assert all(len(x.completion) == 5 and x.completion[-1] == engine.stop for x in found)


def drawn() -> Drawn:
    """Two questions, three completions of 10 and of 20 tokens."""
    return Drawn(
        gold=["7", "7"],
        answers=[["7", "5", "5"], ["6", "7", None]],
        correct=torch.tensor([[True, False, False], [False, True, False]]),
        lengths=torch.tensor([[10, 10, 10], [20, 20, 20]]),
        steps=[[[0.5, 0.9], [0.6, 0.7], [0.1, 1.0]], [[0.2], [0.9], [0.3]]],
    )


def test_a_search_is_compared_with_the_vote_that_has_at_least_its_tokens() -> None:
    found = drawn()
    right = torch.tensor([1.0, 1.0], dtype=torch.float64)
    points = [
        Point("some", "1", right, torch.tensor([15, 15])),  # as much as one completion
        Point("some", "2", right, torch.tensor([20, 40])),  # 30: two
        Point("some", "3", right, torch.tensor([20, 42])),  # 31: three, 45 tokens
        Point("some", "4", right, torch.tensor([50, 50])),  # more than there are
    ]
    rows = compared(found, points)
    assert [(row["vote"], row["its tokens"]) for row in rows] == [
        ("maj@1", 15.0),
        ("maj@2", 30.0),
        ("maj@3", 45.0),
        ("maj@3", 45.0),
    ]
    # The first vote: 7 is right, 6 is wrong; with three, 5 wins the first question, 6 the second.
    assert [float(row["its accuracy"]) for row in rows] == [0.5, 0.5, 0.0, 0.0]
    assert [row["verdict"] for row in rows] == [
        "no gain",
        "no gain",
        "gain",
        "gain, with more tokens",
    ]


def test_best_of_n_is_by_the_first_n_and_costs_what_the_vote_does() -> None:
    found = drawn()
    # By the last step: .9 > .7 (right), then .2 < .9 (right); of all three 1.0 (wrong), .9 (right).
    assert found.best_of(2, last, "x").correct.tolist() == [1.0, 1.0]
    assert found.best_of(3, last, "x").correct.tolist() == [0.0, 1.0]
    # By the weakest: .5 < .6 (wrong).
    assert found.best_of(2, minimum, "x").correct.tolist() == [0.0, 1.0]
    assert found.best_of(2, last, "x").tokens.tolist() == [20, 40]
    assert found.majority(2).tokens.tolist() == [20, 40]
    # .9 is above .7 and below 1.0; .9 is above .2 and .3.
    assert auc_within(found, last) == Interval(0.75, 0.5, 1.0)
    again = Drawn.read(json.loads(json.dumps(found.rows())))
    assert again.rows() == found.rows()


def small() -> SearchJob:
    """Return search-mini with a model of seconds, that errs much."""
    task = sums((2, 2), heldout=24)
    job = search_mini()
    assert job.prm.warm_up is not None
    training = replace(job.prm.warm_up.training, steps=120, documents_per_step=16)
    data = replace(job.prm.warm_up.data, task=task)  # type: ignore[type-var, call-arg]  # sums
    prm = replace(
        job.prm,
        model=FromScratch(layers=1, width=64, heads=4, texts=100),
        data=RolledOutSums(task=task, problems=12, rollouts=2, sampling=Sampling(max_tokens=32)),
        warm_up=replace(job.prm.warm_up, data=data, training=training),
        steps=4,
        solutions_per_step=4,
        save_every=2,
        heldout_every=0,
    )
    return replace(
        job,
        prm=prm,
        task=task,
        counts=(1, 2, 4),
        samples=6,
        sampling=Sampling(max_tokens=32),
        step_tokens=12,
        searches={"beam": Beam(budgets=(1, 2), branches=2), "mcts": Tree(budgets=(2,), branches=2)},
        problems=8,
    )


def go(job: SearchJob, output: Path, *, resume: bool = False) -> None:
    job.check()
    with Runtime(
        job.runtime, output=output, config_yaml=to_yaml(job), seed=job.seed, resume=resume
    ) as run:
        job.run(run)


KEPT = ("evaluation.csv", "stages/3-samples/samples.json", "stages/5-mcts/budget-2.json")


def test_a_killed_run_goes_on_and_ends_like_one_that_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(small(), tmp_path / "whole")
    calls: list[int] = []

    def counted(*args: object, **settings: object) -> object:
        calls.append(int(args[1]))  # type: ignore[call-overload]  # the budget
        if len(calls) == 2:
            raise KeyboardInterrupt
        return search_all(*args, **settings)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(stages, "search_all", counted)
    with pytest.raises(KeyboardInterrupt):
        go(small(), tmp_path / "killed")
    assert not (tmp_path / "killed" / "evaluation.csv").exists()
    go(small(), tmp_path / "killed", resume=True)
    assert calls == [1, 2, 2, 2]  # the beam of width 1 is not searched again
    for name in KEPT:
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    items = [json.loads(x) for x in (tmp_path / "killed" / "items.jsonl").read_text().splitlines()]
    names = [item["name"] for item in items]
    assert sorted(names) == sorted(set(names))
    assert {"Held-out steps", "Votes", "Accuracy against tokens"} <= set(names)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"counts=\(1, 99\), samples=6: give counts from 1"):
        replace(small(), counts=(1, 99))
    with pytest.raises(ValueError, match="problems=0: give at least 1"):
        replace(small(), problems=0)
    with pytest.raises(UsageError, match=r"prm\.warm_up is null"):
        replace(small(), prm=replace(small().prm, warm_up=None)).check()
    with pytest.raises(UsageError, match="no task is given"):
        replace(small(), task=None).check()
