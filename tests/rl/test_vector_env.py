from __future__ import annotations

import pytest

from launch.errors import UsageError
from rl.vector_env import EpisodeLog, episode_seed, own_rows


def test_seed_of_an_episode_follows_from_run_episode_and_environment() -> None:
    seeds = {episode_seed(s, e, i) for s in range(3) for e in range(20) for i in range(20)}
    assert len(seeds) == 1200


def test_log_tells_when_another_episode_begins_and_when_an_environment_rests() -> None:
    log = EpisodeLog(2, quota=2)
    before = log.valid
    assert log.end(1, 3.0, 5)
    assert log.episodes == [0, 1]
    assert not log.end(1, 4.0, 6)
    assert log.valid.tolist() == [True, False]
    assert before.tolist() == [True, True]  # a step that has been given out keeps its own
    assert not log.end(1, 9.0, 9)
    assert log.end(0, 1.0, 2)
    assert log.take() == ([1.0, 3.0, 4.0], [2, 5, 6])
    assert log.take() == ([], [])


def test_log_comes_back_from_its_entries() -> None:
    log, other = EpisodeLog(2, quota=1), EpisodeLog(2, quota=1)
    log.end(1, 3.0, 5)
    other.load([log.entry(i) for i in range(2)])
    assert other.valid.tolist() == [True, False]
    assert other.episodes == log.episodes
    assert other.take() == log.take() == ([3.0], [5])


def test_log_without_a_quota_never_rests() -> None:
    log = EpisodeLog(1)
    assert all(log.end(0, 0.0, 1) for _ in range(100))
    assert log.episodes == [100]


@pytest.mark.parametrize(("first", "count"), [(1, 2), (4, 1), (2, 3)])
def test_environments_that_a_checkpoint_does_not_hold_are_named(first: int, count: int) -> None:
    state = {"kind": "a", "first": 2, "environments": ["two", "three"]}
    assert own_rows(state, kind="a", first=3, count=1) == ["three"]
    said = f"environments 2 to 3, and this process runs {first} to {first + count - 1}"
    with pytest.raises(UsageError, match=said):
        own_rows(state, kind="a", first=first, count=count)
