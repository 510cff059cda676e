"""Monte Carlo learning in tables: from the returns of whole episodes.

Zhao 2025, chapter 5; Sutton & Barto 2018, chapter 5. The arguments are those of
``rl.temporal_difference``, but ``step_size=None``, the default, averages: 1 / visits.

An episode that a time limit truncates has no return yet: its last state is bootstrapped from the
table, by the policy that is learned. (The books know no truncation.)
"""

from __future__ import annotations

import numbers
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from rl.mdp import as_mdp
from rl.step_sizes import Power
from rl.tabular_graph import reached_states
from rl.tabular_schedules import Schedule
from rl.tabular_tasks import (
    ControlResult,
    Seed,
    Task,
    act,
    advance,
    as_rows,
    control_result,
    epsilon_at,
    open_task,
    policy_table,
    rate,
    run,
    score,
    table,
)
from rl.tabular_updates import (
    Floats,
    Ints,
    epsilon_greedy_probabilities,
    expected_sarsa_target,
    shared,
    td_target,
    toward,
)
from rl.tabular_worlds import Env, begin, reset

__all__ = [
    "ControlResult",
    "Visit",
    "mc_basic",
    "mc_epsilon_greedy",
    "mc_exploring_starts",
    "mc_prediction",
]

LONGEST: Final = 10_000_000  # steps of an episode, all of which are kept until its end
Visit: TypeAlias = Literal["first", "every"]
"""Which visits of a state, or pair, in an episode are learned from."""


def mc_prediction(
    env: Env,
    policy: ArrayLike,
    *,
    discount: float,
    episodes: int,
    visit: Visit = "first",
    behaviour: ArrayLike | None = None,
    importance: Literal["ordinary", "weighted"] = "weighted",
    step_size: Schedule | None = None,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> Floats:
    r"""Monte Carlo prediction (Sutton & Barto 2018, sections 5.1, 5.5 and 5.6).

    A value is the mean of the returns ``G_t`` that followed the visits of its state. Off-policy,
    with ``rho_t = prod_{k >= t} pi(a_k|s_k) / b(a_k|s_k)`` to the end of the episode,

        ordinary: v(s) = sum_t rho_t G_t / visits       (eq. 5.5, unbiased)
        weighted: v(s) = sum_t rho_t G_t / sum_t rho_t  (eq. 5.6, far less noisy)

    Args:
        env: A gymnasium id, an instance or a `TabularMDP`.
        policy: pi, the policy to be valued: actions ``(S,)`` or their probabilities ``(S, A)``.
        discount: gamma in [0, 1].
        episodes: How many to play.
        visit: ``"first"`` learns from the first visit of a state in an episode, ``"every"`` from
            all.
        behaviour: Off-policy: b, the policy to act by, which takes every action that pi takes.
        importance: Which mean is taken off-policy.
        step_size: A number or a schedule of (step, visits) instead of the mean.
        seed: An int or a generator.
        initial_value: The values of states that are never visited, a number or ``(S,)``.
        max_episode_steps: A time limit, for environments without their own.

    Returns:
        Values ``(S,)``.
    """
    _check_visit(visit)
    if importance not in ("ordinary", "weighted"):
        raise ValueError(f"importance={importance!r} is unknown: it is 'ordinary' or 'weighted'")
    weighted = behaviour is not None and importance == "weighted"
    if weighted and step_size is not None:
        raise ValueError(
            "a weighted mean has no step size: leave step_size out, or use importance='ordinary'"
        )
    task = open_task(
        env,
        discount=discount,
        episodes=episodes,
        step_size=Power() if step_size is None else step_size,
        policy=policy,
        behaviour=behaviour,
        seed=seed,
        max_episode_steps=max_episode_steps,
    )
    target = policy_table(policy, task.world)
    for state, action in np.argwhere((target > 0) & (task.behaviour == 0)):
        raise ValueError(
            f"the policy takes action {action} in state {state}, but the behaviour never does: "
            "what it leads to could not be learned; give it a positive probability"
        )
    values = table(initial_value, task.world.states)
    run(mc_prediction_loop, task, values, target, visit == "first", weighted)
    return values


def mc_prediction_loop(
    task: Task, values: Floats, policy: Floats, first_visit: bool, weighted: bool
) -> None:
    """Learn ``values``, ``(S,)``, in place."""
    first_times, weights = np.zeros(len(values), np.int64), np.zeros(len(values))
    path, step = [(0, 0, 0.0)], 0
    for _ in range(task.episodes):
        state = reset(task.world)
        action = act(task, task.behaviour, state, step)
        last, discount, _, step = play(task, task.behaviour, state, action, step, path)
        for t in range(len(path) - 1, -1, -1):
            first_times[path[t][0]] = t
        target, ratio = values[last], 1.0
        for t in range(len(path) - 1, -1, -1):
            state, action, reward = path[t]
            target = td_target(reward, discount, target)
            discount = task.discount
            ratio *= policy[state, action] / task.behaviour[state, action]
            if first_visit and first_times[state] != t:
                continue
            if not weighted:
                toward(values, state, ratio * target, rate(task, state, step - 1))
            elif ratio > 0.0:
                weights[state] += ratio
                toward(values, state, target, ratio / weights[state])


def mc_basic(
    env: Env,
    *,
    discount: float,
    iterations: int = 10,
    episodes: int = 1,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> ControlResult:
    """MC Basic: policy iteration with sampled values (Zhao 2025, alg. 5.1).

    Every iteration plays, from every pair (s, a), ``episodes`` episodes that follow the policy;
    their mean return becomes q(s, a), and then the policy becomes the greedy one, of equal actions
    the first. An episode cut short by ``max_episode_steps``, the book's episode length, is
    bootstrapped from the last iteration's values.

    Args:
        env: An environment with a model, which can begin anywhere.
        discount: gamma in [0, 1].
        iterations: How often the policy is valued and improved.
        episodes: Episodes from each pair in each iteration; 1 is enough where nothing is random.
        seed: An int or a generator.
        initial_value: What the table starts with, a number or ``(S, A)``.
        max_episode_steps: Required where some policy never ends its episodes.

    Returns:
        The result; its episodes are all those that were played.
    """
    if not (isinstance(iterations, numbers.Integral) and iterations >= 1):
        raise ValueError(f"iterations={iterations!r}: use a whole number of 1 or more")
    task = open_task(
        env,
        discount=discount,
        episodes=episodes,
        step_size=Power(),
        seed=seed,
        max_episode_steps=max_episode_steps,
        begins_anywhere=True,
    )
    q = table(initial_value, task.world.states, task.world.actions)
    return control_result(q, run(mc_basic_loop, task, q, int(iterations)))


def mc_basic_loop(task: Task, q: Floats, iterations: int) -> Floats:
    """Learn ``q``, ``(S, A)``, in place; return the scores of all episodes."""
    policy, values = np.zeros(len(q), np.int64), np.zeros(len(q))
    finished: list[tuple[float, float]] = []
    for _ in range(iterations):
        for state in range(len(q)):
            policy[state] = q[state].argmax()
            values[state] = q[state, policy[state]]
        for index in range(q.size):
            total = 0.0
            for _ in range(task.episodes):
                state, action = begin(task.world, index // q.shape[1]), index % q.shape[1]
                weight, ended = 1.0, False
                while not ended:
                    state, reward, discount, ended = advance(task, action)
                    total += weight * reward
                    weight *= discount
                    action = policy[state]
                total += weight * values[state]
                finished.append(score(task))
            q[index // q.shape[1], index % q.shape[1]] = total / task.episodes
    return as_rows(finished)


def mc_exploring_starts(
    env: Env,
    *,
    discount: float,
    steps: int | None = None,
    episodes: int | None = None,
    step_size: Schedule | None = None,
    visit: Visit = "first",
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> ControlResult:
    """MC with exploring starts (Zhao 2025, alg. 5.2; Sutton & Barto 2018, section 5.3).

    Every episode begins with a pair drawn uniformly from those that episodes can come to, and goes
    on greedily. So the environment must have a model, and where some policy never ends its
    episodes, a time limit.

    Args:
        env: An environment with a model.
        discount: gamma in [0, 1].
        steps: Environment steps in all; or
        episodes: episodes to finish.
        step_size: A number or a schedule of (step, visits) instead of the mean of returns.
        visit: As in `mc_prediction`, of pairs.
        seed: An int or a generator.
        initial_value: What the table starts with, a number or ``(S, A)``.
        max_episode_steps: A time limit, for environments without their own.
    """
    _check_visit(visit)
    task = open_task(
        env,
        discount=discount,
        steps=steps,
        episodes=episodes,
        step_size=Power() if step_size is None else step_size,
        seed=seed,
        max_episode_steps=max_episode_steps,
        begins_anywhere=True,
    )
    q = table(initial_value, task.world.states, task.world.actions)
    mdp = as_mdp(env)
    starts = np.flatnonzero(reached_states(mdp, np.ones_like(mdp.rewards, dtype=np.bool_)))
    return control_result(q, run(mc_exploring_starts_loop, task, q, starts, visit == "first"))


def mc_exploring_starts_loop(task: Task, q: Floats, starts: Ints, first_visit: bool) -> Floats:
    """Learn ``q``, ``(S, A)``, in place; return the scores of the finished episodes."""
    first_times, path, step = np.zeros(q.size, np.int64), [(0, 0, 0.0)], 0
    finished: list[tuple[float, float]] = []
    while step < task.steps and len(finished) < task.episodes:
        state = begin(task.world, starts[int(task.generator.random() * len(starts))])
        action = int(task.generator.random() * q.shape[1])
        last, discount, ended, step = play(task, q, state, action, step, path)
        if ended:
            finished.append(score(task))
            target = q[last].max()
            learn(task, q, path, target, discount, first_times, first_visit, step - 1)
    return as_rows(finished)


def mc_epsilon_greedy(
    env: Env,
    *,
    discount: float,
    steps: int | None = None,
    episodes: int | None = None,
    step_size: Schedule | None = None,
    epsilon: Schedule = 0.1,
    visit: Visit = "first",
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> ControlResult:
    """MC with epsilon-greedy exploration (Zhao 2025, alg. 5.3; Sutton & Barto 2018, section 5.4).

    Zhao's learns from every visit, Sutton & Barto's, the default, from the first.

    Args:
        env: A gymnasium id, an instance or a `TabularMDP`.
        discount: gamma in [0, 1].
        steps: Environment steps in all; or
        episodes: episodes to finish.
        step_size: A number or a schedule of (step, visits) instead of the mean of returns.
        epsilon: A number or a schedule of (step, visits).
        visit: As in `mc_prediction`, of pairs.
        seed: An int or a generator.
        initial_value: What the table starts with, a number or ``(S, A)``.
        max_episode_steps: A time limit, for environments without their own.
    """
    _check_visit(visit)
    task = open_task(
        env,
        discount=discount,
        steps=steps,
        episodes=episodes,
        step_size=Power() if step_size is None else step_size,
        epsilon=epsilon,
        seed=seed,
        max_episode_steps=max_episode_steps,
    )
    q = table(initial_value, task.world.states, task.world.actions)
    return control_result(q, run(mc_epsilon_greedy_loop, task, q, visit == "first"))


def mc_epsilon_greedy_loop(task: Task, q: Floats, first_visit: bool) -> Floats:
    """Learn ``q``, ``(S, A)``, in place; return the scores of the finished episodes."""
    first_times, path, step = np.zeros(q.size, np.int64), [(0, 0, 0.0)], 0
    probabilities = np.zeros(q.shape[1])
    finished: list[tuple[float, float]] = []
    while step < task.steps and len(finished) < task.episodes:
        state = reset(task.world)
        action = act(task, q, state, step)
        last, discount, ended, step = play(task, q, state, action, step, path)
        if ended:
            finished.append(score(task))
            epsilon_greedy_probabilities(q[last], epsilon_at(task, last, step), probabilities)
            target = expected_sarsa_target(0.0, 1.0, q[last], probabilities)
            learn(task, q, path, target, discount, first_times, first_visit, step - 1)
    return as_rows(finished)


@shared
def play(
    task: Task, q: Floats, state: int, action: int, step: int, path: list[tuple[int, int, float]]
) -> tuple[int, float, bool, int]:
    """Play an episode to its end, or to that of the budget, and write it into ``path``.

    Returns:
        Its last state, that one's discount (0 where it terminated), whether it ended, and ``step``.
    """
    path.clear()
    discount, ended = 0.0, False
    while not ended and step < task.steps:
        next_state, reward, discount, ended = advance(task, action)
        if len(path) == LONGEST:  # the memory would fill up
            raise ValueError("an episode took 10,000,000 steps without end: set max_episode_steps=")
        path.append((state, action, reward))
        state = next_state
        step += 1
        if not ended:
            action = act(task, q, state, step)
    return state, discount, ended, step


@shared
def learn(
    task: Task,
    q: Floats,
    path: list[tuple[int, int, float]],
    target: float,
    discount: float,
    first_times: Ints,
    first_visit: bool,
    step: int,
) -> None:
    """Move the pairs of an episode toward their returns, from the last pair to the first.

    ``target`` and ``discount`` are those of the state after the last pair.
    """
    flat, actions = q.reshape(-1), q.shape[1]
    for t in range(len(path) - 1, -1, -1):
        first_times[path[t][0] * actions + path[t][1]] = t
    for t in range(len(path) - 1, -1, -1):
        state, action, reward = path[t]
        target = td_target(reward, discount, target)
        discount = task.discount
        index = state * actions + action
        if not first_visit or first_times[index] == t:
            toward(flat, index, target, rate(task, index, step))


def _check_visit(visit: Visit) -> None:
    if visit not in ("first", "every"):
        raise ValueError(f"visit={visit!r} is unknown: it is 'first' or 'every'")
