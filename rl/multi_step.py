"""Control in tables by more than one step: n-step returns and eligibility traces.

Sutton & Barto 2018, chapters 7 and 12. What the arguments mean is in ``rl.temporal_difference``.
"""

from __future__ import annotations

import numbers
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

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
    rate,
    run,
    score,
    table,
)
from rl.tabular_updates import (
    TRUE_ONLINE,
    Floats,
    along_traces,
    epsilon_greedy_probabilities,
    mark_trace,
    q_learning_target,
    q_sigma_target,
    td_target,
    toward,
)
from rl.tabular_worlds import Env, reset
from rl.td_prediction import TRACE_KINDS, TraceKind, check_n, check_trace

__all__ = [
    "n_step_q_sigma",
    "n_step_sarsa",
    "n_step_tree_backup",
    "sarsa_lambda",
    "watkins_q_lambda",
]


def n_step_sarsa(
    env: Env,
    *,
    n: int,
    discount: float,
    steps: int | None = None,
    episodes: int | None = None,
    step_size: Schedule = 0.1,
    epsilon: Schedule = 0.1,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> ControlResult:
    """n-step Sarsa (Zhao 2025, section 7.3; Sutton & Barto 2018, section 7.2, eq. 7.4 and 7.5).

        G = r_{t+1} + ... + discount^{n-1} r_{t+n} + discount^n q(s_{t+n}, a_{t+n})
        q(s_t, a_t) <- q(s_t, a_t) + step_size * (G - q(s_t, a_t))

    Beside the arguments that all share:

    - ``n``: Steps until the bootstrap, 1 or more; 1 is Sarsa.
    """
    check_n(n)
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
    return control_result(q, run(n_step_loop, task, q, n, 1.0))


def n_step_tree_backup(
    env: Env,
    *,
    n: int,
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
    r"""n-step tree backup (Precup et al. 2000; Sutton & Barto 2018, section 7.5, eq. 7.16).

        G_t = r_{t+1} + discount * (\sum_{a != a_{t+1}} pi(a|s_{t+1}) q(s_{t+1}, a)
                                    + pi(a_{t+1}|s_{t+1}) G_{t+1})

    pi, the policy that is learned, is epsilon-greedy by the table; so by itself it also acts. As no
    ratio of probabilities is taken, another one may.

    Beside the arguments that all share:

    - ``n``: Steps until the bootstrap, 1 or more; 1 is expected Sarsa.
    - ``behaviour``: Off-policy: a policy to act by, ``(S, A)`` or ``(S,)``; ``epsilon=0`` then
      learns the greedy policy.
    """
    check_n(n)
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
    return control_result(q, run(n_step_loop, task, q, n, 0.0))


def n_step_q_sigma(
    env: Env,
    *,
    n: int,
    sigma: float,
    discount: float,
    steps: int | None = None,
    episodes: int | None = None,
    step_size: Schedule = 0.1,
    epsilon: Schedule = 0.1,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> ControlResult:
    r"""n-step Q(sigma), on-policy (De Asis et al. 2018, arXiv:1703.01327).

    It goes from tree backup, ``sigma=0``, to Sarsa, ``sigma=1``, by mixing their returns at every
    step (``rl.tabular_updates.q_sigma_target``). Sutton & Barto 2018, eq. 7.17, differs: there
    ``sigma=1`` is Sarsa with a control variate.

    Beside the arguments that all share:

    - ``n``: Steps until the bootstrap, 1 or more.
    - ``sigma``: The share of sampling in [0, 1].
    """
    check_n(n)
    if not (isinstance(sigma, numbers.Real) and 0 <= sigma <= 1):
        raise ValueError(f"sigma={sigma!r}: the share of sampling is a number in [0, 1]")
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
    return control_result(q, run(n_step_loop, task, q, n, float(sigma)))


def n_step_loop(task: Task, q: Floats, n: int, sigma: float) -> Floats:
    """Learn ``q``, ``(S, A)``, in place; return the scores of the finished episodes."""
    flat, probabilities, step = q.reshape(-1), np.zeros(q.shape[1]), 0
    states, actions = np.zeros(n, np.int64), np.zeros(n, np.int64)  # of the last n steps
    rewards, discounts = np.zeros(n), np.zeros(n)
    first, last = 0, 0  # of the episode's steps, those whose pairs wait for their update
    finished: list[tuple[float, float]] = []
    state = reset(task.world)
    action = act(task, q, state, step)
    while step < task.steps and len(finished) < task.episodes:
        states[last % n], actions[last % n] = state, action
        state, reward, discount, ended = advance(task, action)
        rewards[last % n], discounts[last % n] = reward, discount
        terminated = ended and discount == 0.0
        action = 0 if terminated else act(task, q, state, step + 1)
        last += 1
        step += 1
        while first < last and (ended or last - first == n):
            next_state, next_action = state, action
            target = q[state, action]
            for k in range(last - 1, first - 1, -1):
                epsilon = epsilon_at(task, next_state, step)
                epsilon_greedy_probabilities(q[next_state], epsilon, probabilities)
                target = q_sigma_target(
                    rewards[k % n],
                    discounts[k % n],
                    target,
                    q[next_state],
                    next_action,
                    probabilities,
                    sigma,
                )
                next_state, next_action = states[k % n], actions[k % n]
            index = next_state * q.shape[1] + next_action
            toward(flat, index, target, rate(task, index, step - 1))
            first += 1
        if ended:
            finished.append(score(task))
            first, last = 0, 0
            state = reset(task.world)
            action = act(task, q, state, step)
    return as_rows(finished)


def sarsa_lambda(
    env: Env,
    *,
    trace: float,
    kind: TraceKind = "accumulating",
    discount: float,
    steps: int | None = None,
    episodes: int | None = None,
    step_size: Schedule = 0.1,
    epsilon: Schedule = 0.1,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> ControlResult:
    """Sarsa(lambda) with eligibility traces (Sutton & Barto 2018, section 12.7).

        z <- discount * lambda * z, and z(s, a) is raised
        q <- q + step_size * (r + discount * q(s', a') - q(s, a)) * z

    Beside the arguments that all share:

    - ``trace``: lambda in [0, 1]; 0 is Sarsa.
    - ``kind``: How a visit raises z, see `td_lambda`.
    """
    check_trace(trace, kind)
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
    return control_result(q, run(sarsa_lambda_loop, task, q, float(trace), TRACE_KINDS[kind]))


def sarsa_lambda_loop(task: Task, q: Floats, trace: float, kind: int) -> Floats:
    """Learn ``q``, ``(S, A)``, in place; return the scores of the finished episodes."""
    flat, actions, step = q.reshape(-1), q.shape[1], 0
    traces = np.zeros(len(flat))
    finished: list[tuple[float, float]] = []
    state = reset(task.world)
    action = act(task, q, state, step)
    bootstrap = q[state, action]
    while step < task.steps and len(finished) < task.episodes:
        next_state, reward, discount, ended = advance(task, action)
        terminated = ended and discount == 0.0
        next_action = 0 if terminated else act(task, q, next_state, step + 1)
        index = state * actions + action
        step_size = rate(task, index, step)
        traces *= task.discount * trace
        mark_trace(traces, index, step_size, kind)
        error = td_target(reward, discount, q[next_state, next_action]) - flat[index]
        drift = flat[index] - bootstrap if kind == TRUE_ONLINE else 0.0
        bootstrap = q[next_state, next_action]
        along_traces(flat, traces, index, error, drift, step_size)
        state, action = next_state, next_action
        step += 1
        if ended:
            finished.append(score(task))
            traces[:] = 0.0
            state = reset(task.world)
            action = act(task, q, state, step)
            bootstrap = q[state, action]
    return as_rows(finished)


def watkins_q_lambda(
    env: Env,
    *,
    trace: float,
    kind: Literal["accumulating", "replacing"] = "accumulating",
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
    """Watkins's Q(lambda) (Watkins 1989; Sutton & Barto 2018, section 12.10).

        z <- discount * lambda * z, or 0 where a is not greedy, and z(s, a) is raised
        q <- q + step_size * (r + discount * max_a' q(s', a') - q(s, a)) * z

    Beyond an action that the greedy policy would not take, what follows says nothing of that
    policy: the traces are cut there. Whether an action is greedy is asked of the table when it is
    taken.

    Beside the arguments that all share:

    - ``trace``: lambda in [0, 1]; 0 is Q-learning.
    - ``kind``: How a visit raises z, see `td_lambda`.
    - ``behaviour``: As in `q_learning`.
    """
    check_trace(trace, kind)
    if TRACE_KINDS[kind] == TRUE_ONLINE:
        raise ValueError(
            "kind='true online' is not for Q(lambda): the cut traces have no such form"
        )
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
    return control_result(q, run(watkins_loop, task, q, float(trace), TRACE_KINDS[kind]))


def watkins_loop(task: Task, q: Floats, trace: float, kind: int) -> Floats:
    """Learn ``q``, ``(S, A)``, in place; return the scores of the finished episodes."""
    flat, actions, step = q.reshape(-1), q.shape[1], 0
    traces = np.zeros(len(flat))
    finished: list[tuple[float, float]] = []
    state = reset(task.world)
    while step < task.steps and len(finished) < task.episodes:
        action = act(task, q, state, step)
        next_state, reward, discount, ended = advance(task, action)
        index = state * actions + action
        step_size = rate(task, index, step)
        is_greedy = flat[index] == q[state].max()
        traces *= task.discount * trace if is_greedy else 0.0
        mark_trace(traces, index, step_size, kind)
        error = q_learning_target(reward, discount, q[next_state]) - flat[index]
        along_traces(flat, traces, index, error, 0.0, step_size)
        state = next_state
        step += 1
        if ended:
            finished.append(score(task))
            traces[:] = 0.0
            state = reset(task.world)
    return as_rows(finished)
