"""What agents step: several environments at once, the same contract whatever is behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from launch.errors import UsageError
from launch.streams import key
from rl.spaces import Observations, Space

__all__ = ["EnvStep", "EpisodeLog", "VectorEnv", "episode_seed", "own_rows"]


class EnvStep(NamedTuple):
    """One step of B environments. The arrays are for reading: two fields may be one array.

    A tuple rather than a dataclass, because a frozen dataclass costs as much as the compiled step.
    """

    observations: Observations
    """``(B, ...)`` to act on next: the first of a new episode where one has ended."""
    next_observations: Observations
    """``(B, ...)`` what the action led to: the final observation where an episode has ended."""
    rewards: NDArray[np.float32]
    """``(B,)``, as the environment gave them."""
    terminated: NDArray[np.bool_]
    """``(B,)``: the state that was reached has no future, its value is 0."""
    truncated: NDArray[np.bool_]
    """``(B,)``: the episode was cut off, its final state still has a value."""
    valid: NDArray[np.bool_]
    """``(B,)``; False where nothing was done: a reset row of NEXT_STEP autoreset, or an
    environment that rests. Never train on such a row."""


class VectorEnv(Protocol):
    """B environments that begin a new episode where one ends.

    Environment i of this process is number ``first + i`` of all; the seed of each of its episodes
    follows from that number, so the number of processes changes no episode. The state in a
    checkpoint is a list with one entry for each environment; ``load_state_dict`` takes the entries
    of its own from a longer list too.
    """

    @property
    def count(self) -> int:
        """B."""
        ...

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is truncated; None if that is not known."""
        ...

    @property
    def observation_space(self) -> Space:
        """Of one environment."""
        ...

    @property
    def action_space(self) -> Space:
        """Of one environment."""
        ...

    def reset(self) -> Observations:
        """Begin the first episode of every environment."""
        ...

    def step(self, actions: NDArray[Any]) -> EnvStep:
        """Act in every environment.

        Args:
            actions: ``(B,)`` whole numbers or ``(B, D)`` floats; those of a Box are clipped.

        Raises:
            UsageError: Actions that are not of the space; a NaN from the environment.
        """
        ...

    def action_masks(self) -> NDArray[np.bool_] | None:
        """Return ``(B, A)``, True where an action may be taken now; None if all always may."""
        ...

    def take_episodes(self) -> tuple[list[float], list[int]]:
        """Return undiscounted raw returns and lengths of the episodes ended since the last call.

        They stand in the order of the environments, and of time within each.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Observations:
        """Take what ``state_dict`` returned; return the observations to act on next."""
        ...

    def close(self) -> None:
        """Free what the environments hold."""
        ...


def episode_seed(seed: int, episode: int, environment: int) -> int:
    """Return the seed of an episode of an environment, both counted from 0 over all processes."""
    return key(seed, "episode", episode, environment)


class EpisodeLog:
    """Episodes of B environments: the running ones and those that have ended.

    Args:
        count: B.
        quota: Episodes that each environment runs before it rests; None never rests.
    """

    def __init__(self, count: int, quota: int | None = None) -> None:
        if quota is not None and quota < 1:
            raise UsageError(f"quota={quota}: each environment runs 1 episode or more")
        self.quota = quota
        self.clear(count)

    def clear(self, count: int) -> None:
        """Forget everything: the first episodes begin."""
        self.episodes = [0] * count
        """Number of the running episode of each environment."""
        self.valid = np.ones(count, np.bool_)
        """False where an environment rests. It is replaced, never written into."""
        self._ended: list[list[tuple[float, int]]] = [[] for _ in range(count)]

    def end(self, index: int, total: float, length: int) -> bool:
        """Note the end of an episode; return whether another one begins."""
        if not self.valid[index]:
            return False
        self._ended[index].append((total, length))
        if self.quota is not None and self.episodes[index] + 1 >= self.quota:
            self.valid = self.valid.copy()
            self.valid[index] = False
            return False
        self.episodes[index] += 1
        return True

    def take(self) -> tuple[list[float], list[int]]:
        """Return returns and lengths of what has ended since the last call."""
        ended = [episode for of_one in self._ended for episode in of_one]
        if ended:
            self._ended = [[] for _ in self._ended]
        return [total for total, _ in ended], [length for _, length in ended]

    def entry(self, index: int) -> dict[str, Any]:
        """Return an environment's part of a checkpoint."""
        return {
            "episode": self.episodes[index],
            "resting": not self.valid[index],
            "ended": [list(episode) for episode in self._ended[index]],
        }

    def load(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Take what ``entry`` returned for each environment."""
        self.episodes = [int(entry["episode"]) for entry in entries]
        self.valid = np.array([not entry["resting"] for entry in entries], np.bool_)
        self._ended = [[(float(r), int(n)) for r, n in entry["ended"]] for entry in entries]


def own_rows(state: Mapping[str, Any], *, kind: str, first: int, count: int) -> list[Any]:
    """Return this process's entries of a checkpoint, which may hold those of all processes.

    Raises:
        UsageError: They are of another kind of environments, or not all there.
    """
    if state["kind"] != kind:
        raise UsageError(
            f"the checkpoint is of the environments {state['kind']!r}, and these are {kind!r}: "
            "resume with the environment that the run began with"
        )
    start = first - int(state["first"])
    entries = list(state["environments"])
    if start < 0 or start + count > len(entries):
        last = int(state["first"]) + len(entries) - 1
        raise UsageError(
            f"the checkpoint holds environments {state['first']} to {last}, and this process runs "
            f"{first} to {first + count - 1}: resume with as many environments as the run began "
            "with, and save those of all processes together"
        )
    return entries[start : start + count]
