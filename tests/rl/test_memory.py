from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from launch.runtime import Runtime
from rl.agent import AgentConfig, AllEnvs, own_envs
from rl.exploration import Linear
from rl.memory import Memory, Prioritized, Uniform, split_masks
from rl.replay import PrioritizedReplay
from rl.vector_env import EnvStep


class Number(gymnasium.Env[np.ndarray, int]):
    """One number is seen; action 1 is forbidden at the start, if any is."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)
    masked = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ANN401
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> Any:  # noqa: ANN401
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def action_masks(self) -> np.ndarray | None:
        return np.array([True, False]) if self.masked else None


class Masked(Number):
    masked = True


class Together(Runtime):
    """One of two processes, in one: what is gathered is gathered by the test."""

    def __init__(self, rank: int, both: list[list[Any]]) -> None:
        super().__init__()
        self._rank, self.both = rank, both

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return 2

    def gather_objects(self, items: Sequence[Any]) -> list[Any]:
        self.both[self._rank] = list(items)
        return [item for part in self.both for item in part]


def environments(env: Any = Number) -> AllEnvs:  # noqa: ANN401 any source
    return own_envs(AgentConfig(env=env, envs=2), Runtime())


def make(run: Runtime, env: Any = Number, config: Any = None) -> Memory:  # noqa: ANN401
    config = Uniform(capacity=8) if config is None else config
    return Memory(config, environments(env), spaces.Discrete(2), run, discount=0.5)


def step(numbers: list[float], truncated: list[bool]) -> tuple[np.ndarray, np.ndarray, EnvStep]:
    """Return what was seen, the actions (all 0) and a step that leads to ten times as much."""
    seen, none = np.array(numbers, np.float32)[:, None], np.zeros(len(numbers), np.bool_)
    made = EnvStep(seen, 10 * seen, seen[:, 0], none, np.array(truncated), ~none)
    return seen, np.zeros(len(seen), np.int64), made


def seen(memory: Memory) -> list[float]:
    rows = memory.replay.take(np.arange(len(memory.replay)))
    assert isinstance(rows.observations, torch.Tensor)
    return rows.observations[:, 0].tolist()


def test_processes_keep_the_steps_of_all_in_the_order_of_one() -> None:
    one = make(Runtime())
    both: list[list[Any]] = [[], []]
    parts = [make(Together(rank, both)) for rank in range(2)]
    for t in range(2):
        whole = step([4 * t + 0.0, 4 * t + 1.0, 4 * t + 2.0], [False, True, False])
        one.add(whole[0], None, whole[1], whole[2], None)
        for rank, rows in enumerate((slice(0, 1), slice(1, 3))):
            own = EnvStep(*(x[rows] for x in whole[2]))
            parts[rank].add(whole[0][rows], None, whole[1][rows], own, None)
    for part in parts:  # in a run both gather at once: here the first sees nothing of the second
        part.run.gather_objects([part._held])
    for part in parts:
        part.exchange()
    one.exchange()
    assert seen(one) == [0.0, 1.0, 2.0, 4.0, 5.0, 6.0]
    assert seen(parts[0]) == seen(parts[1]) == seen(one)


def test_steps_that_wait_for_the_exchange_are_copies() -> None:
    memory = make(Together(0, [[], [[]]]))
    whole = step([1.0, 2.0], [False, False])
    memory.add(whole[0], None, whole[1], whole[2], None)
    whole[0][:] = 9.0
    assert memory._held[0][0].tolist() == [[1.0], [2.0]]


def test_shares_of_both_processes_are_the_batch_of_one() -> None:
    def filled(run: Runtime) -> Memory:
        memory = make(run)
        memory.replay.add(*_rows(8))
        return memory

    whole = filled(Runtime()).sample(5, np.random.default_rng(3), batches=2)
    parts = [
        filled(Together(rank, [[], []])).sample(5, np.random.default_rng(3), batches=2)
        for rank in range(2)
    ]
    assert [len(part) for part in parts] == [4, 6]  # 2 and 3 rows of each batch
    first, second = (part.indices.view(2, -1) for part in parts)
    assert torch.equal(torch.cat([first, second], dim=1), whole.indices.view(2, 5))


def _rows(count: int) -> tuple[np.ndarray, ...]:
    numbers = np.arange(count, dtype=np.float32)
    none = np.zeros(count, np.bool_)
    return numbers[:, None], np.zeros(count, np.int64), numbers, none, none, numbers[:, None]


def test_masks_are_kept_and_a_final_observation_allows_everything() -> None:
    memory = make(Runtime(), Masked)
    assert memory.masked
    whole = step([1.0, 2.0], [False, True])
    now, then = np.array([[True, False], [False, True]]), np.array([[False, True], [True, False]])
    memory.add(whole[0], now, whole[1], whole[2], then)
    rows = memory.replay.take(np.arange(2))
    numbers, masks = split_masks(rows.observations, masked=True)
    following, next_masks = split_masks(rows.next_observations, masked=True)
    assert isinstance(numbers, torch.Tensor)
    assert isinstance(following, torch.Tensor)
    assert numbers.tolist() == [[1.0], [2.0]]
    assert following.tolist() == [[10.0], [20.0]]
    assert masks is not None
    assert next_masks is not None
    assert masks.tolist() == now.tolist()
    assert next_masks.tolist() == [[False, True], [True, True]]


def test_environment_without_masks_keeps_none() -> None:
    memory = make(Runtime())
    assert not memory.masked
    x = torch.zeros(1)
    assert split_masks(x, masked=False) == (x, None)


def test_beta_rises_with_the_env_steps_and_priorities_follow_the_errors() -> None:
    config = Prioritized(capacity=8, alpha=1.0, beta=Linear(0.0, 1.0, 10), epsilon=1e-9)
    memory = make(Runtime(), config=config)
    assert memory.prioritized
    assert isinstance(memory.replay, PrioritizedReplay)
    memory.replay.add(*_rows(2))
    config.anneal(memory.replay, 5)
    assert memory.replay.beta == 0.5
    drawn = memory.sample(2, np.random.default_rng(0))  # of each half one: every row once
    assert drawn.indices.tolist() == [0, 1]
    memory.note_errors(torch.tensor([1.0, 3.0]))
    counts = np.bincount(memory.sample(400, np.random.default_rng(0)).indices.numpy())
    assert counts.tolist() == [100, 300]


def test_prioritized_needs_an_alpha_between_0_and_1() -> None:
    with pytest.raises(ValueError, match=r"alpha=1\.5: it lies between 0 and 1"):
        Prioritized(alpha=1.5)
    with pytest.raises(ValueError, match=r"epsilon=0: use more than 0"):
        Prioritized(epsilon=0)
