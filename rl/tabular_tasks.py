"""What every tabular method is given, checked once, and the loop that it runs in."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

import gymnasium
import numpy as np
from gymnasium.envs.toy_text.blackjack import BlackjackEnv
from gymnasium.utils.seeding import np_random
from numpy.typing import ArrayLike

from rl.blackjack import observed_states
from rl.mdp import TabularMDP, as_mdp
from rl.outcomes import ROUNDING
from rl.tabular_fast import UNLIMITED, Model, compiled, model_world
from rl.tabular_graph import check_ends, check_ends_under_any_policy
from rl.tabular_schedules import (
    Row,
    Schedule,
    epsilon_schedule,
    scheduled,
    step_size_schedule,
)
from rl.tabular_updates import Floats, Ints, draw, epsilon_greedy, shared
from rl.tabular_worlds import Env, GymWorld, World, open_env, shows_all, step, time_limit

__all__ = [
    "ControlResult",
    "Seed",
    "Task",
    "act",
    "advance",
    "as_rows",
    "control_result",
    "epsilon_at",
    "open_task",
    "policy_table",
    "rate",
    "run",
    "score",
    "table",
]

R = TypeVar("R")
Seed: TypeAlias = "int | np.random.Generator"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ControlResult:
    """What a method of control has learned, and what it earned on the way."""

    action_values: Floats
    """``(S, A)``."""
    policy: Ints
    """``(S,)``, the greedy action in each state, of equal ones the first."""
    episode_returns: Floats
    """``(E,)``, the undiscounted sum of rewards of each finished episode, exploration included."""
    episode_lengths: Ints
    """``(E,)``, in steps."""


class Task(NamedTuple):
    """The arguments that all loops share."""

    world: World
    discount: float
    steps: int
    """Environment steps after which to stop."""
    episodes: int
    """Finished episodes after which to stop."""
    step_size: Row | Callable[[int, int], float]
    epsilon: Row | Callable[[int, int], float]
    updates: Ints
    """How often each entry of the table has been updated; flat."""
    choices: Ints
    """``(S,)``, how many actions have been chosen in each state."""
    behaviour: Floats
    """``(S, A)``, the policy to act by; ``(0, A)`` acts epsilon-greedily by the learner's table."""
    generator: np.random.Generator
    """The learner's own draws, in the order of the loop; the world has another one."""


# --- what the loops call ------------------------------------------------------------------------


@shared
def act(task: Task, q: Floats, state: int, step: int) -> int:
    """Choose an action: by ``task.behaviour``, or epsilon-greedily by the table ``(S, A)``."""
    if len(task.behaviour) > 0:
        return draw(task.behaviour[state], task.generator)
    epsilon = epsilon_at(task, state, step)
    task.choices[state] += 1
    return epsilon_greedy(q[state], epsilon, task.generator)


@shared
def epsilon_at(task: Task, state: int, step: int) -> float:
    """Return the exploration rate of the next choice in ``state``."""
    return scheduled(task.epsilon, step, task.choices[state] + 1)


@shared
def advance(task: Task, action: int) -> tuple[int, float, float, bool]:
    """Act: next state, reward, discount (gamma, or 0 where terminated), whether it ended."""
    next_state, reward, terminated, truncated = step(task.world, action)
    return next_state, reward, 0.0 if terminated else task.discount, terminated or truncated


@shared
def rate(task: Task, index: int, step: int) -> float:
    """Count an update of an entry of the flat table, and return its step size."""
    task.updates[index] += 1
    return scheduled(task.step_size, step, task.updates[index])


@shared
def score(task: Task) -> tuple[float, float]:
    """Return the running episode's undiscounted return and its length."""
    return task.world.earned[0], float(task.world.length[0])


@shared
def as_rows(finished: list[tuple[float, float]]) -> Floats:
    """Return the scores of finished episodes as an array ``(E, 2)``."""
    rows = np.empty((len(finished), 2))
    for k in range(len(finished)):
        rows[k, 0], rows[k, 1] = finished[k]
    return rows


# --- what the public functions call -------------------------------------------------------------


def open_task(
    env: Env,
    *,
    discount: float,
    steps: int | None = None,
    episodes: int | None = None,
    step_size: Schedule,
    epsilon: Schedule = 0.0,
    policy: ArrayLike | None = None,
    behaviour: ArrayLike | None = None,
    seed: Seed,
    max_episode_steps: int | None,
    begins_anywhere: bool = False,
) -> Task:
    """Check the arguments that all methods share and open the environment, or its model.

    Where the model is at hand, and no step size or rate is a Python function, the loop will be
    compiled over it. The task acts by ``behaviour`` or ``policy``, checked under that name, or
    without them by the learner's table. A method that ``begins_anywhere`` needs the model, and
    policies of any kind.

    Raises:
        ValueError: An argument is out of its range, or no such environment can be had.
    """
    if not (isinstance(discount, numbers.Real) and 0 <= discount <= 1):
        raise ValueError(f"discount={discount!r}: a discount is a number in [0, 1]")
    budget = _budget(steps, episodes)
    sizes, rates = step_size_schedule(step_size), epsilon_schedule(epsilon)
    root = np.random.default_rng(seed)
    env_seed = int(root.integers(2**31))
    made = open_env(env, max_episode_steps)
    world: World = GymWorld(made, env_seed)
    acting = np.zeros((0, world.actions))
    if policy is not None:
        acting = policy_table(policy, world, "policy")
    if behaviour is not None:
        acting = policy_table(behaviour, world, "behaviour")
    mdp = as_mdp(made) if begins_anywhere else _model_or_none(made)
    if mdp is not None:
        observed = _observed_states(mdp, made)
        if time_limit(made) is None and begins_anywhere:
            check_ends_under_any_policy(mdp)
        elif time_limit(made) is None and episodes is not None:
            anything = np.ones((mdp.states, mdp.actions), dtype=np.bool_)
            check_ends(mdp, acting[observed] > 0 if len(acting) else anything)
        if begins_anywhere or not (callable(sizes) or callable(rates)):
            world = model_world(mdp, time_limit(made), np_random(env_seed)[0], observed)
    return Task(
        world=world,
        discount=float(discount),
        steps=budget[0],
        episodes=budget[1],
        step_size=sizes,
        epsilon=rates,
        updates=np.zeros(world.states * world.actions, np.int64),
        choices=np.zeros(world.states, np.int64),
        behaviour=acting,
        generator=root,
    )


def _model_or_none(made: gymnasium.Env[Any, Any]) -> TabularMDP | None:
    if not shows_all(made):
        return None
    try:
        return as_mdp(made)
    except ValueError:  # it has none, or one that is not true of it
        return None


def _observed_states(mdp: TabularMDP, made: gymnasium.Env[Any, Any]) -> Ints:
    """Return the state that a learner sees in each state of the model."""
    if isinstance(made.unwrapped, BlackjackEnv):
        return observed_states()
    return np.arange(mdp.states)


def _budget(steps: int | None, episodes: int | None) -> tuple[int, int]:
    if (steps is None) == (episodes is None):
        raise ValueError(
            f"steps={steps}, episodes={episodes}: give exactly one of them, "
            "environment steps in all or finished episodes"
        )
    for name, count in (("steps", steps), ("episodes", episodes)):
        if count is not None and not (isinstance(count, numbers.Integral) and count >= 1):
            raise ValueError(f"{name}={count!r}: use a whole number of 1 or more")
    return int(steps or UNLIMITED), int(episodes or UNLIMITED)


def run(loop: Callable[..., R], task: Task, *arguments: object) -> R:
    """Run a loop over a task: compiled over a model, as it is written otherwise."""
    compiles = isinstance(task.world, Model) and not (
        callable(task.step_size) or callable(task.epsilon)
    )
    return (compiled(loop) if compiles else loop)(task, *arguments)


def table(initial_value: ArrayLike, *shape: int) -> Floats:
    """Return a new table of this shape that holds ``initial_value``, a number or a table."""
    given = np.asarray(initial_value, dtype=np.float64)
    if given.shape not in ((), shape) or not np.isfinite(given).all():
        raise ValueError(
            f"initial_value={initial_value!r}: use a finite number, or a table of shape {shape}"
        )
    return np.array(np.broadcast_to(given, shape), order="C")  # its flat view must be a view


def policy_table(policy: ArrayLike, world: World, name: str = "policy") -> Floats:
    """Return the probabilities ``(S, A)`` of a policy, given so or as actions ``(S,)``.

    Raises:
        ValueError: The shape fits neither, an action does not exist, or a row is no distribution.
    """
    given, states, actions = np.asarray(policy), world.states, world.actions
    if given.shape == (states,) and np.issubdtype(given.dtype, np.integer):
        if given.min() < 0 or given.max() >= actions:
            raise ValueError(
                f"{name} takes actions {given.min()} to {given.max()}, "
                f"but there are only 0 to {actions - 1}"
            )
        return np.eye(actions)[given]
    if given.shape != (states, actions):
        raise ValueError(
            f"{name} has shape {given.shape} and type {given.dtype}: expected an action for each "
            f"state, integers ({states},), or its probabilities, ({states}, {actions})"
        )
    probabilities = np.array(given, dtype=np.float64, order="C")
    sums = probabilities.sum(1)
    for state in np.flatnonzero(~((probabilities >= 0).all(1) & (np.abs(sums - 1) <= ROUNDING))):
        raise ValueError(
            f"{name}[{state}] = {probabilities[state].tolist()} is no distribution: probabilities "
            "are 0 or more and sum to 1"
        )
    return probabilities


def control_result(q: Floats, finished: Floats) -> ControlResult:
    """Return the learned table with its greedy policy and the scores ``(E, 2)`` of its episodes."""
    return ControlResult(
        action_values=q,
        policy=q.argmax(1),
        episode_returns=finished[:, 0].copy(),
        episode_lengths=finished[:, 1].astype(np.int64),
    )
