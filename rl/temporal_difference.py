"""Temporal-difference learning in tables: control by one step.

Zhao 2025, chapter 7; Sutton & Barto 2018, chapter 6. The methods that look further than a step are
in ``rl.multi_step``, those that learn a model in ``rl.model_based``, and prediction is in
``rl.td_prediction``; their names are importable from here too.

What all share. Values are float64. Actions are chosen epsilon-greedily by the table, any of the
best where several are equal. An episode that terminates has no value after its end, one that a time
limit truncates is bootstrapped. Where the environment's model is at hand the loop is compiled over
it (``rl.tabular_fast``), with the results of the readable loop for equal draws; the loops below are
both.

Arguments of all methods of control:

- ``env``: a gymnasium id, an instance or a `TabularMDP`; its states and actions can be numbered.
- ``discount``: gamma in [0, 1].
- ``steps`` or ``episodes``: when to stop, exactly one of them; an episode cut short by ``steps`` is
  not listed in the result.
- ``step_size``, ``epsilon``: a number or a schedule of (step, visits), see
  ``rl.tabular_schedules``.
- ``seed``: an int or a generator, which is advanced; the environment gets a seed drawn from it.
- ``initial_value``: what the table starts with, a number or a table of its shape.
- ``max_episode_steps``: a time limit, for environments without their own.

They return a `ControlResult` and raise a ValueError, before the work, where an argument is out of
its range or the environment's states or actions are not finitely many.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rl.model_based import dyna_q, prioritized_sweeping
from rl.multi_step import (
    n_step_q_sigma,
    n_step_sarsa,
    n_step_tree_backup,
    sarsa_lambda,
    watkins_q_lambda,
)
from rl.step_sizes import Constant, Power
from rl.tabular_schedules import Linear, Schedule
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
    rate,
    run,
    score,
    table,
)
from rl.tabular_updates import (
    Floats,
    double_q_target,
    epsilon_greedy_probabilities,
    expected_sarsa_target,
    q_learning_target,
    td_target,
    toward,
)
from rl.tabular_worlds import Env, reset
from rl.td_prediction import TraceKind, n_step_td, td0, td_lambda

__all__ = [
    "Constant",
    "ControlResult",
    "Linear",
    "Power",
    "Schedule",
    "TraceKind",
    "double_q_learning",
    "dyna_q",
    "expected_sarsa",
    "n_step_q_sigma",
    "n_step_sarsa",
    "n_step_td",
    "n_step_tree_backup",
    "prioritized_sweeping",
    "q_learning",
    "sarsa",
    "sarsa_lambda",
    "td0",
    "td_lambda",
    "watkins_q_lambda",
]


def sarsa(
    env: Env,
    *,
    discount: float,
    steps: int | None = None,
    episodes: int | None = None,
    step_size: Schedule = 0.1,
    epsilon: Schedule = 0.1,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> ControlResult:
    """Sarsa (Rummery & Niranjan 1994; Zhao 2025, alg. 7.1; Sutton & Barto 2018, section 6.4).

        q(s, a) <- q(s, a) + step_size * (r + discount * q(s', a') - q(s, a))

    a' is the action taken next; where the episode is truncated, the one that would have been.
    """
    task = open_task(
        env,
        discount=discount,
        steps=steps,
        episodes=episodes,
        step_size=step_size,
        epsilon=epsilon,
        seed=seed,
        max_episode_steps=max_episode_steps,
    )
    q = table(initial_value, task.world.states, task.world.actions)
    return control_result(q, run(sarsa_loop, task, q))


def sarsa_loop(task: Task, q: Floats) -> Floats:
    """Learn ``q``, ``(S, A)``, in place; return the scores of the finished episodes."""
    flat, actions, step = q.reshape(-1), q.shape[1], 0
    finished: list[tuple[float, float]] = []
    state = reset(task.world)
    action = act(task, q, state, step)
    while step < task.steps and len(finished) < task.episodes:
        next_state, reward, discount, ended = advance(task, action)
        terminated = ended and discount == 0.0
        next_action = 0 if terminated else act(task, q, next_state, step + 1)
        target = td_target(reward, discount, q[next_state, next_action])
        index = state * actions + action
        toward(flat, index, target, rate(task, index, step))
        state, action = next_state, next_action
        step += 1
        if ended:
            finished.append(score(task))
            state = reset(task.world)
            action = act(task, q, state, step)
    return as_rows(finished)


def expected_sarsa(
    env: Env,
    *,
    discount: float,
    steps: int | None = None,
    episodes: int | None = None,
    step_size: Schedule = 0.1,
    epsilon: Schedule = 0.1,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> ControlResult:
    """Expected Sarsa (van Seijen et al. 2009; Sutton & Barto 2018, section 6.6).

        q(s, a) <- q(s, a) + step_size * (r + discount * sum_a' pi(a'|s') q(s', a') - q(s, a))

    pi is the epsilon-greedy policy of the table as it stands, the one that acts.
    """
    task = open_task(
        env,
        discount=discount,
        steps=steps,
        episodes=episodes,
        step_size=step_size,
        epsilon=epsilon,
        seed=seed,
        max_episode_steps=max_episode_steps,
    )
    q = table(initial_value, task.world.states, task.world.actions)
    return control_result(q, run(expected_sarsa_loop, task, q))


def expected_sarsa_loop(task: Task, q: Floats) -> Floats:
    """Learn ``q``, ``(S, A)``, in place; return the scores of the finished episodes."""
    flat, actions, step = q.reshape(-1), q.shape[1], 0
    probabilities = np.zeros(actions)
    finished: list[tuple[float, float]] = []
    state = reset(task.world)
    while step < task.steps and len(finished) < task.episodes:
        action = act(task, q, state, step)
        next_state, reward, discount, ended = advance(task, action)
        epsilon = epsilon_at(task, next_state, step + 1)
        epsilon_greedy_probabilities(q[next_state], epsilon, probabilities)
        target = expected_sarsa_target(reward, discount, q[next_state], probabilities)
        index = state * actions + action
        toward(flat, index, target, rate(task, index, step))
        state = next_state
        step += 1
        if ended:
            finished.append(score(task))
            state = reset(task.world)
    return as_rows(finished)


def q_learning(
    env: Env,
    *,
    discount: float,
    steps: int | None = None,
    episodes: int | None = None,
    step_size: Schedule = 0.1,
    epsilon: Schedule = 0.1,
    behaviour: ArrayLike | None = None,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> ControlResult:
    """Q-learning (Watkins 1989; Zhao 2025, alg. 7.2 and 7.3).

        q(s, a) <- q(s, a) + step_size * (r + discount * max_a' q(s', a') - q(s, a))

    Beside the arguments that all share:

    - ``behaviour``: Off-policy: a policy to act by, ``(S, A)`` or ``(S,)``, instead of being
      epsilon-greedy; it should take every action.
    """
    task = open_task(
        env,
        discount=discount,
        steps=steps,
        episodes=episodes,
        step_size=step_size,
        epsilon=epsilon,
        behaviour=behaviour,
        seed=seed,
        max_episode_steps=max_episode_steps,
    )
    q = table(initial_value, task.world.states, task.world.actions)
    return control_result(q, run(q_learning_loop, task, q))


def q_learning_loop(task: Task, q: Floats) -> Floats:
    """Learn ``q``, ``(S, A)``, in place; return the scores of the finished episodes."""
    flat, actions, step = q.reshape(-1), q.shape[1], 0
    finished: list[tuple[float, float]] = []
    state = reset(task.world)
    while step < task.steps and len(finished) < task.episodes:
        action = act(task, q, state, step)
        next_state, reward, discount, ended = advance(task, action)
        target = q_learning_target(reward, discount, q[next_state])
        index = state * actions + action
        toward(flat, index, target, rate(task, index, step))
        state = next_state
        step += 1
        if ended:
            finished.append(score(task))
            state = reset(task.world)
    return as_rows(finished)


def double_q_learning(
    env: Env,
    *,
    discount: float,
    steps: int | None = None,
    episodes: int | None = None,
    step_size: Schedule = 0.1,
    epsilon: Schedule = 0.1,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> ControlResult:
    """Double Q-learning (van Hasselt 2010, alg. 1; Sutton & Barto 2018, section 6.7).

        q1(s, a) <- q1(s, a) + step_size * (r + discount * q2(s', argmax_a' q1(s', a')) - q1(s, a))

    or with the tables exchanged, by a fair coin. The one that chooses a maximum does not value it,
    so noise is not taken for value. Actions are epsilon-greedy by the sum of the tables; their mean
    is what is reported. A step size's visits are those of one table.
    """
    task = open_task(
        env,
        discount=discount,
        steps=steps,
        episodes=episodes,
        step_size=step_size,
        epsilon=epsilon,
        seed=seed,
        max_episode_steps=max_episode_steps,
    )
    task = task._replace(updates=np.zeros(2 * len(task.updates), np.int64))
    first = table(initial_value, task.world.states, task.world.actions)
    second = first.copy()
    finished = run(double_q_learning_loop, task, first, second)
    return control_result((first + second) / 2.0, finished)


def double_q_learning_loop(task: Task, first: Floats, second: Floats) -> Floats:
    """Learn both tables, ``(S, A)``, in place; return the scores of the finished episodes."""
    actions, step = first.shape[1], 0
    both = first + second
    finished: list[tuple[float, float]] = []
    state = reset(task.world)
    while step < task.steps and len(finished) < task.episodes:
        action = act(task, both, state, step)
        next_state, reward, discount, ended = advance(task, action)
        index = state * actions + action
        if task.generator.random() < 0.5:
            target = double_q_target(reward, discount, first[next_state], second[next_state])
            toward(first.reshape(-1), index, target, rate(task, index, step))
        else:
            target = double_q_target(reward, discount, second[next_state], first[next_state])
            toward(second.reshape(-1), index, target, rate(task, index + first.size, step))
        both[state, action] = first[state, action] + second[state, action]
        state = next_state
        step += 1
        if ended:
            finished.append(score(task))
            state = reset(task.world)
    return as_rows(finished)
