"""Searches that run side by side find what each finds alone, in fewer calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
import torch

from posttrain.rollout import Rollout, Sampling
from posttrain.search import ByStep, StateValue, StepScores, beam_search, last, mcts
from posttrain.search.language import LanguageSteps, Tokens
from posttrain.search.together import Together, TogetherEngine, TogetherSteps

STOP, BREAK = 0, 1


class Lines:
    """Writes a letter from 2 to 5 and a line break; the second line ends with a stop token."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Rollout:
        assert seeds is not None
        self.calls.append(len(prompts))
        width = max(map(len, prompts)) + 2
        tokens = torch.zeros(len(prompts) * group_size, width, dtype=torch.int64)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for p, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            draws = torch.Generator().manual_seed(seed % 2**31)
            for row in range(p * group_size, (p + 1) * group_size):
                letter = int(torch.randint(2, 6, (), generator=draws))
                end = STOP if BREAK in prompt else BREAK
                written = [*prompt, letter, end]
                tokens[row, : len(written)] = torch.tensor(written)
                mask[row, len(prompt) : len(written)] = True
        zeros = torch.zeros(tokens.shape)
        return Rollout(
            tokens=tokens,
            mask=mask,
            old_log_probs=zeros,
            tempered_log_probs=zeros,
            finish_reasons=["stop"] * len(tokens),
        )


class Letters:
    """Judges a step by its last letter."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def probabilities(
        self, rows: Sequence[Sequence[int]], ends: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        self.calls.append(len(rows))
        return [[row[end - 1] / 8 for end in own] for row, own in zip(rows, ends, strict=True)]


Search = Callable[[LanguageSteps, ByStep[Tokens]], object]


def by_beam(steps: LanguageSteps, score: ByStep[Tokens]) -> object:
    return beam_search((), steps, score, width=2, expansions=2, max_steps=4, seed=3), steps.spent


def by_tree(steps: LanguageSteps, score: ByStep[Tokens]) -> object:
    return repr(mcts((), steps, simulations=9, exploration=1.0, seed=3)), steps.spent


def search(prompt: int, engine: Lines | TogetherEngine, judge: Letters | TogetherSteps) -> object:
    score = ByStep(StepScores(judge, (7, prompt), (BREAK,)), last)
    steps = LanguageSteps(
        engine=engine,
        prompt=(7, prompt),
        sampling=Sampling(max_tokens=8, stop_tokens=(STOP,)),
        breaks=(BREAK,),
        value=StateValue(score),
        branches=3,
        seed=prompt,
    )
    kind: Search = by_tree if prompt % 2 else by_beam
    return kind(steps, score)


def test_searches_of_different_kinds_find_what_they_find_alone() -> None:
    engine, judge = Lines(), Letters()
    alone = [search(prompt, engine, judge) for prompt in range(10, 18)]
    together, shared, judges = Together(), Lines(), Letters()
    tools = TogetherEngine(together, shared), TogetherSteps(together, judges)
    found = together.run([lambda p=p: search(p, *tools) for p in range(10, 18)])
    assert found == alone
    assert len({repr(x) for x in alone}) > 1
    assert sum(shared.calls) == sum(engine.calls)
    assert sum(judges.calls) == sum(judge.calls)
    # The four beams take as many turns as one, and so do the four trees; alone it is four times.
    assert len(shared.calls) < len(engine.calls) / 2
    assert len(judges.calls) < len(judge.calls) / 2


def test_only_the_caller_computes_and_equal_works_are_one_call() -> None:
    together = Together()
    calls: list[list[int]] = []
    threads = set()

    def double(items: Sequence[int]) -> list[int]:
        calls.append(list(items))
        threads.add(threading.current_thread())
        return [2 * item for item in items]

    def triple(items: Sequence[int]) -> list[int]:
        calls.append(list(items))
        return [3 * item for item in items]

    def twice(start: int) -> int:
        [first] = together.ask(double, [start])
        return sum(together.ask(triple if start == 1 else double, [first, start]))

    # 0 -> 0, 0 -> 0; 1 -> 2, and by threes 6 + 3; 2 -> 4, then 8 + 4.
    assert together.run([lambda i=i: twice(i) for i in range(3)]) == [0, 9, 12]
    assert calls == [[0, 1, 2], [0, 0, 4, 2], [2, 1]]
    assert threads == {threading.current_thread()}
    assert together.run([]) == []


def test_an_error_of_a_search_or_of_its_work_is_raised() -> None:
    together = Together()

    def refuse(items: Sequence[int]) -> list[int]:
        raise ValueError(f"cannot do {len(items)}")

    def short(items: Sequence[int]) -> list[int]:
        return [0]

    def alone() -> int:
        raise KeyError("mine")

    with pytest.raises(ValueError, match="cannot do 2"):
        together.run([lambda i=i: together.ask(refuse, [i])[0] for i in range(2)])
    with pytest.raises(ValueError, match="got 1 results for 2 items"):
        together.run([lambda i=i: together.ask(short, [i])[0] for i in range(2)])
    with pytest.raises(KeyError, match="mine"):
        together.run([lambda: together.ask(short, [1])[0], alone])


def test_an_interruption_ends_every_search() -> None:
    together = Together()
    before = threading.active_count()

    def double(items: Sequence[int]) -> list[int]:
        return [2 * item for item in items]

    def interrupt(items: Sequence[int]) -> list[int]:
        raise KeyboardInterrupt

    works = [double, interrupt, double, double]

    def follow(index: int) -> int:
        [first] = together.ask(works[index], [index])
        return together.ask(double, [first])[0]

    with pytest.raises(KeyboardInterrupt):
        together.run([lambda i=i: follow(i) for i in range(4)])
    for thread in threading.enumerate():
        if thread.daemon and "follow" in thread.name:
            thread.join(5)
    assert threading.active_count() == before
