"""What online linear methods are given: an environment that shows rows of features, and policies.

An observation is a row ``(D,)``, float64: a Box flattened, or numbers that count from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from rl.features import BinaryFeatures, Features, FeatureTable
from rl.linear_arrays import Floats
from rl.mdp import as_mdp
from rl.outcomes import ROUNDING
from rl.step_sizes import StepSize, check_size
from rl.stochastic import DivergenceError
from rl.tabular_graph import check_ends
from rl.tabular_tasks import Seed, policy_table
from rl.tabular_updates import draw
from rl.tabular_worlds import Env, GymWorld, open_env, time_limit

__all__ = [
    "LinearWorld",
    "ObservedFeatures",
    "Policy",
    "Rate",
    "Step",
    "check_error",
    "play",
    "policy_of",
    "rate_of",
]

Policy: TypeAlias = "ArrayLike | Callable[[Floats], ArrayLike]"
"""Actions ``(S,)`` or probabilities ``(S, A)`` of numbered states, or a function of an observation
``(D,)`` that returns an action or the probabilities ``(A,)``."""
Acting: TypeAlias = Callable[[Floats], Floats]
Rate: TypeAlias = "ArrayLike | StepSize"
"""A step size: a number, one for each feature ``(d,)``, or a function of the update, from 1."""


class ObservedFeatures:
    """Features of an environment's own observations.

    Args:
        features: A function of ``(B, D)``, or for numbered states an array ``(S, d)``.
        space: The environment's observations.
    """

    def __init__(
        self, features: Features | ArrayLike, space: gymnasium.Space[Any], name: str
    ) -> None:
        self._starts = _starts(space, name)
        table = not callable(features) or isinstance(features, FeatureTable)
        if table and not isinstance(space, spaces.Discrete):
            raise ValueError(
                f"got a table of features, but the observations of {name} are {space}, not "
                "numbered states: give a function of observations, such as TileCoding"
            )
        self.features: Features = features if callable(features) else FeatureTable(features)
        if isinstance(self.features, FeatureTable) and len(self.features.features) != space.n:
            raise ValueError(
                f"got a table of features of {len(self.features.features)} states, but {name} has "
                f"{space.n}: give a row for each"
            )
        self._active = features.active if isinstance(features, BinaryFeatures) else None

    def row(self, observation: Any) -> Floats:  # noqa: ANN401 as an environment gives it
        """Return an observation as ``(D,)``."""
        return np.asarray(observation, dtype=np.float64).reshape(-1) - self._starts

    def of(self, row: Floats) -> Floats:
        """Return the features ``(d,)`` of a row ``(D,)``."""
        found = np.asarray(self.features(row[None]), dtype=np.float64)
        if found.ndim != 2 or len(found) != 1:
            raise ValueError(
                f"the features of one observation have shape {found.shape}: they are (1, d), "
                "a row for each observation"
            )
        return found[0]

    def located(self, row: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Return where the features of a row are not 0, and what they are there."""
        if self._active is not None:
            where = self._active(row[None])[0]
            return where, np.ones(len(where))
        x = self.of(row)
        where = np.flatnonzero(x)
        return where, x[where]

    def __call__(self, observations: Any) -> Floats:  # noqa: ANN401 as environments give them
        """Return the features ``(B, d)`` of a batch of observations, ``(B, ...)``."""
        if isinstance(observations, tuple):  # of a Tuple space, each component a batch
            observations = np.stack(observations, axis=-1)
        rows = np.asarray(observations, dtype=np.float64)
        return np.asarray(self.features(rows.reshape(len(rows), -1) - self._starts))


class LinearWorld:
    """An environment that shows rows; what it returns is checked.

    Raises:
        ValueError: No such environment, actions that are not finitely many, or observations that
            are neither a Box nor numbers.
    """

    def __init__(
        self,
        env: Env,
        features: Features | ArrayLike,
        *,
        seed: Seed,
        max_episode_steps: int | None,
    ) -> None:
        self.env = open_env(env, max_episode_steps)
        name = self.env.spec.id if self.env.spec else type(self.env.unwrapped).__name__
        if not isinstance(self.env.action_space, spaces.Discrete):
            raise ValueError(
                f"the actions of {name} are {self.env.action_space}, not Discrete: these methods "
                "weigh each of finitely many actions"
            )
        self.name = name
        self.first_action = int(self.env.action_space.start)
        self.actions = int(self.env.action_space.n)
        self.observed = ObservedFeatures(features, self.env.observation_space, name)
        self.generator = np.random.default_rng(seed)
        self.earned, self.length = 0.0, 0
        observation, _ = self.env.reset(seed=int(self.generator.integers(2**31)))
        self.first = self._row(observation)
        """Where the first episode begins, by which arguments are checked before the work."""
        self._unused = True
        self.size = len(self.observed.of(self.first))
        """d."""

    def reset(self) -> Floats:
        """Begin an episode."""
        self.earned, self.length = 0.0, 0
        if self._unused:
            self._unused = False
            return self.first
        observation, _ = self.env.reset()
        return self._row(observation)

    def step(self, action: int) -> tuple[Floats, float, bool, bool]:
        """Act: next observation, reward, terminated, truncated."""
        observation, reward, terminated, truncated, _ = self.env.step(self.first_action + action)
        self.length += 1
        if not math.isfinite(reward):
            raise ValueError(
                f"{self.name} returned a reward of {reward} at step {self.length} of an episode: "
                "it would spread over all weights; mend the environment"
            )
        self.earned += float(reward)
        return self._row(observation), float(reward), bool(terminated), bool(truncated)

    def check_ends(self, acting: Acting | None) -> None:
        """Raise ValueError where an episode is known to go on for ever."""
        space = self.env.observation_space
        if time_limit(self.env) is not None or not isinstance(space, spaces.Discrete):
            return
        try:
            mdp = as_mdp(self.env)
        except ValueError:  # it has no model
            return
        taken = np.ones(mdp.rewards.shape, np.bool_)
        if acting is not None:
            taken = np.array([acting(np.array([float(s)])) > 0 for s in range(mdp.states)])
        check_ends(mdp, taken)

    def _row(self, observation: Any) -> Floats:  # noqa: ANN401 as an environment gives it
        row = self.observed.row(observation)
        if not np.isfinite(row).all():
            raise ValueError(
                f"{self.name} returned the observation {observation!r} at step {self.length} of an "
                "episode: it has no features; mend the environment"
            )
        return row


class Step(NamedTuple):
    """A step as methods of prediction learn from it."""

    x: Floats
    """``(d,)``, features of the state left."""
    reward: float
    discount: float
    """gamma, or 0 where the episode terminated."""
    x_next: Floats
    """``(d,)``, features of the state reached, also of one in which it was truncated."""
    ratio: float
    """Target over behaviour, of the action taken."""
    first: bool
    """Whether it begins an episode."""


def play(
    world: LinearWorld, target: Acting, behaviour: Acting, discount: float, episodes: int
) -> Iterator[Step]:
    """Yield the steps of whole episodes that the behaviour plays."""
    for _ in range(episodes):
        row, first, ended = world.reset(), True, False
        x = world.observed.of(row)
        while not ended:
            wanted, chances = target(row), behaviour(row)
            if ((wanted > 0) & (chances == 0)).any():
                raise ValueError(
                    f"at {row} the policy has probabilities {wanted}, the behaviour {chances}: it "
                    "must take whatever the policy takes, or no ratio corrects for it"
                )
            action = draw(chances, world.generator)
            row, reward, terminated, truncated = world.step(action)
            x_next = world.observed.of(row)
            ratio = float(wanted[action] / chances[action])
            yield Step(x, reward, 0.0 if terminated else discount, x_next, ratio, first)
            x, first, ended = x_next, False, terminated or truncated


def policy_of(name: str, policy: Policy, world: LinearWorld) -> Acting:
    """Return a policy as a function of an observation ``(D,)`` to probabilities ``(A,)``.

    Raises:
        ValueError: A wrong shape or no distribution; of a function at the first observation, and at
            any later one.
    """
    if not callable(policy):
        if not isinstance(world.env.observation_space, spaces.Discrete):
            raise ValueError(
                f"{name} is a table, but the observations of {world.name} are "
                f"{world.env.observation_space}, not numbered states: give a function of an "
                "observation that returns an action or the probabilities of actions"
            )
        table = policy_table(policy, GymWorld(world.env, 0), name)
        return lambda row: table[int(row[0])]
    identity = np.eye(world.actions)

    def acting(row: Floats) -> Floats:
        found = np.asarray(policy(row))
        if found.ndim == 0 and np.issubdtype(found.dtype, np.integer):
            if 0 <= found < world.actions:
                return identity[int(found)]
        elif found.shape == (world.actions,):
            chances = found.astype(np.float64)
            if (chances >= 0).all() and abs(chances.sum() - 1) <= ROUNDING:
                return chances
        raise ValueError(
            f"{name} returned {found} at the observation {row}: expected an action, a whole number "
            f"from 0 to {world.actions - 1}, or the probabilities ({world.actions},) of all"
        )

    acting(world.first)
    return acting


def rate_of(name: str, step_size: Rate, size: int) -> Callable[[int], float | Floats]:
    """Return a step size as a function of the update, from 1; it is checked.

    Raises:
        ValueError: A step size that is not above 0, or of a wrong shape.
    """
    if callable(step_size):

        def rate(k: int) -> float:
            found = step_size(k)
            check_size(f"{name}({k})", found)
            return found

        rate(1)
        return rate
    sizes = np.asarray(step_size)
    if sizes.ndim == 0:
        check_size(name, sizes.item())
        number = float(sizes)
        return lambda k: number
    if sizes.shape != (size,):
        raise ValueError(
            f"got {name} of shape {sizes.shape}: give a number, or one for each feature ({size},)"
        )
    for entry in sizes:
        check_size(name, entry)
    array = sizes.astype(np.float64)
    return lambda k: array


def check_error(error: float | Floats, update: int) -> None:
    """Raise DivergenceError where a temporal-difference error has left the range of float64."""
    if not math.isfinite(error):
        raise DivergenceError(
            f"update {update} left the range of float64: take smaller steps (the squares of the "
            "features add up; with tile coding divide by the number of tilings), or off-policy a "
            "method that is stable there, such as tdc"
        )


def _starts(space: gymnasium.Space[Any], name: str) -> Floats:
    """Return from where the components of an observation count; a Box counts from 0."""
    if isinstance(space, spaces.Box):
        return np.zeros(1)
    parts = space.spaces if isinstance(space, spaces.Tuple) else (space,)
    if parts and all(isinstance(part, spaces.Discrete) for part in parts):
        return np.array([float(part.start) for part in parts])
    if isinstance(space, spaces.MultiDiscrete):
        return np.asarray(space.start, dtype=np.float64).reshape(-1)
    raise ValueError(
        f"the observations of {name} are {space}: features take a Box or numbers (Discrete, "
        "MultiDiscrete, a Tuple of Discrete); bring them into this form by a wrapper"
    )
