"""Many searches side by side: what all of them ask for is worked out in one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch

from posttrain.eval.run import Generates
from posttrain.process_reward_models import JudgesSteps
from posttrain.rollout.batch import Rollout, Sampling

__all__ = ["Together", "TogetherEngine", "TogetherSteps", "Work"]

T = TypeVar("T")
X = TypeVar("X", contravariant=True)
Y = TypeVar("Y", covariant=True)


class Work(Hashable, Protocol[X, Y]):
    """What can be asked for; equal works are done in one call."""

    def __call__(self, items: Sequence[X], /) -> Sequence[Y]:
        """Return one result for each item, whatever items are beside it."""
        ...


@dataclass(eq=False, slots=True)
class _Request:
    work: Work[Any, Any]
    items: Sequence[Any]
    results: Sequence[Any] = ()
    error: BaseException | None = None
    answered: threading.Event = field(default_factory=threading.Event)


class Together:
    """Runs searches that know nothing of each other in step.

    Each search has a thread of its own, which waits whenever it asks. Once all of them wait, the
    caller's thread does the work for all: equal works are one call on the items of all searches, in
    the searches' order. So only one thread ever computes. A search finds what it would find alone
    as long as a result depends on its item alone; those of a model do, to rounding.

    >>> def double(items):
    ...     print(len(items), "items")
    ...     return [2 * item for item in items]
    >>> together = Together()
    >>> together.run([lambda i=i: together.ask(double, [i])[0] for i in range(3)])
    3 items
    [0, 2, 4]
    """

    def __init__(self) -> None:
        self._own = threading.local()
        self._changed = threading.Condition()
        self._waiting: dict[int, _Request] = {}
        self._answering: list[_Request] = []
        self._alive = 0
        self._stopped: BaseException | None = None

    def run(self, searches: Sequence[Callable[[], T]]) -> list[T]:
        """Return what each search returns; the first error of any is raised."""
        found: list[T | None] = [None] * len(searches)
        errors: dict[int, BaseException] = {}

        def follow(index: int) -> None:
            self._own.index = index
            try:
                found[index] = searches[index]()
            except BaseException as error:  # raised below, in the caller's thread
                errors[index] = error
            with self._changed:
                self._alive -= 1
                self._changed.notify_all()

        self._alive, self._stopped = len(searches), None
        with self._released_at_the_end():
            for index in range(len(searches)):
                threading.Thread(target=follow, args=(index,), daemon=True).start()
            while requests := self._all_wait():
                for group in _equal_works(requests):
                    _answer(group)
        if errors:
            raise errors[min(errors)]
        return cast("list[T]", found)

    def ask(self, work: Work[X, Y], items: Sequence[X]) -> Sequence[Y]:
        """Return one result for each item; only for searches that ``run`` runs."""
        request = _Request(work, items)
        with self._changed:
            if self._stopped is not None:
                raise self._stopped
            self._waiting[self._own.index] = request
            self._changed.notify_all()
        request.answered.wait()
        if request.error is not None:
            raise request.error
        return request.results

    def _all_wait(self) -> list[_Request]:
        """Return the requests once every search that has not ended waits; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) == self._alive)
            self._answering = [self._waiting[index] for index in sorted(self._waiting)]
            self._waiting.clear()
        return self._answering

    @contextmanager
    def _released_at_the_end(self) -> Iterator[None]:
        """Let no thread wait for ever if the caller is interrupted."""
        try:
            yield
        except BaseException as error:
            with self._changed:
                self._stopped = error
                for request in (*self._answering, *self._waiting.values()):
                    if not request.answered.is_set():
                        request.error = error
                        request.answered.set()
                self._waiting.clear()
            raise


def _equal_works(requests: Sequence[_Request]) -> list[list[_Request]]:
    groups: dict[Work[Any, Any], list[_Request]] = {}
    for request in requests:
        groups.setdefault(request.work, []).append(request)
    return list(groups.values())


def _answer(group: Sequence[_Request]) -> None:
    """Do the work of a group; an error is raised in every search that asked."""
    items = [item for request in group for item in request.items]
    error: BaseException | None = None
    try:
        results = group[0].work(items)
        if len(results) != len(items):
            raise ValueError(f"got {len(results)} results for {len(items)} items")
    except Exception as caught:
        error, results = caught, ()
    start = 0
    for request in group:
        request.results = results[start : start + len(request.items)]
        request.error = error
        start += len(request.items)
        request.answered.set()


@dataclass(frozen=True, slots=True)
class _Draw:
    key: int
    """Tells engines apart."""
    sampling: Sampling
    group_size: int
    engine: Generates = field(compare=False)

    def __call__(self, items: Sequence[tuple[tuple[int, ...], int]], /) -> list[Rollout]:
        prompts, seeds = [prompt for prompt, _ in items], [seed for _, seed in items]
        drawn = self.engine.generate(prompts, self.sampling, self.group_size, seeds=seeds)
        size = self.group_size
        return [_rows(drawn, i * size, (i + 1) * size) for i in range(len(items))]


@dataclass(frozen=True, slots=True)
class TogetherEngine:
    """An engine for searches that run together."""

    together: Together
    engine: Generates

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Rollout:
        """Return ``group_size`` completions of each prompt."""
        keys = range(len(prompts)) if seeds is None else seeds
        items = [(tuple(prompt), seed) for prompt, seed in zip(prompts, keys, strict=True)]
        parts = self.together.ask(_Draw(id(self.engine), sampling, group_size, self.engine), items)
        return Rollout(
            tokens=torch.cat([part.tokens for part in parts]),
            mask=torch.cat([part.mask for part in parts]),
            old_log_probs=torch.cat([part.old_log_probs for part in parts]),
            tempered_log_probs=torch.cat([part.tempered_log_probs for part in parts]),
            finish_reasons=[reason for part in parts for reason in part.finish_reasons],
        )


@dataclass(frozen=True, slots=True)
class _Judge:
    key: int
    """Tells models apart."""
    model: JudgesSteps = field(compare=False)

    def __call__(
        self, items: Sequence[tuple[Sequence[int], Sequence[int]]], /
    ) -> list[list[float]]:
        return self.model.probabilities([row for row, _ in items], [ends for _, ends in items])


@dataclass(frozen=True, slots=True)
class TogetherSteps:
    """A process reward model for searches that run together, as ``StepScores`` takes one."""

    together: Together
    model: JudgesSteps

    def probabilities(
        self, rows: Sequence[Sequence[int]], ends: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return the probability of each step."""
        items = list(zip(rows, ends, strict=True))
        return list(self.together.ask(_Judge(id(self.model), self.model), items))


def _rows(drawn: Rollout, start: int, stop: int) -> Rollout:
    return Rollout(
        tokens=drawn.tokens[start:stop],
        mask=drawn.mask[start:stop],
        old_log_probs=drawn.old_log_probs[start:stop],
        tempered_log_probs=drawn.tempered_log_probs[start:stop],
        finish_reasons=drawn.finish_reasons[start:stop],
    )
