"""Temporal-difference prediction: the values of a given policy, from its own episodes."""

from __future__ import annotations

import numbers
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from rl.tabular_schedules import Schedule
from rl.tabular_tasks import Seed, Task, advance, open_task, rate, run, table
from rl.tabular_updates import (
    ACCUMULATING,
    REPLACING,
    TRUE_ONLINE,
    Floats,
    along_traces,
    draw,
    mark_trace,
    td_target,
    toward,
)
from rl.tabular_worlds import Env, reset

__all__ = [
    "TRACE_KINDS",
    "TraceKind",
    "check_n",
    "check_trace",
    "n_step_td",
    "td0",
    "td_lambda",
]

TraceKind: TypeAlias = Literal["accumulating", "replacing", "true online"]
TRACE_KINDS = {"accumulating": ACCUMULATING, "replacing": REPLACING, "true online": TRUE_ONLINE}


def td0(
    env: Env,
    policy: ArrayLike,
    *,
    discount: float,
    episodes: int,
    step_size: Schedule = 0.1,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> Floats:
    """TD(0) (Sutton 1988; Zhao 2025, eq. 7.1; Sutton & Barto 2018, section 6.1).

        v(s) <- v(s) + step_size * (r + discount * v(s') - v(s))

    Args:
        env: A gymnasium id, an instance or a `TabularMDP`.
        policy: Actions ``(S,)``, integers, or their probabilities ``(S, A)``.
        discount: gamma in [0, 1].
        episodes: How many to play.
        step_size: A number or a schedule of (step, visits).
        seed: An int or a generator.
        initial_value: What the values start with, a number or ``(S,)``.
        max_episode_steps: A time limit, for environments without their own.

    Returns:
        Values ``(S,)``; those of states never visited are the initial ones.
    """
    task = open_task(
        env,
        discount=discount,
        episodes=episodes,
        step_size=step_size,
        policy=policy,
        seed=seed,
        max_episode_steps=max_episode_steps,
    )
    values = table(initial_value, task.world.states)
    run(td0_loop, task, values)
    return values


def td0_loop(task: Task, values: Floats) -> None:
    """Learn ``values``, ``(S,)``, in place."""
    step = 0
    for _ in range(task.episodes):
        state, ended = reset(task.world), False
        while not ended:
            action = draw(task.behaviour[state], task.generator)
            next_state, reward, discount, ended = advance(task, action)
            target = td_target(reward, discount, values[next_state])
            toward(values, state, target, rate(task, state, step))
            state = next_state
            step += 1


def n_step_td(
    env: Env,
    policy: ArrayLike,
    *,
    n: int,
    discount: float,
    episodes: int,
    step_size: Schedule = 0.1,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> Floats:
    r"""n-step TD (Sutton & Barto 2018, section 7.1, eq. 7.1 and 7.2).

        G = r_{t+1} + ... + discount^{n-1} r_{t+n} + discount^n v(s_{t+n})
        v(s_t) <- v(s_t) + step_size * (G - v(s_t))

    The end of an episode cuts the last returns short.

    Beside the arguments that all share:

    - ``n``: Steps until the bootstrap, 1 or more.
    """
    check_n(n)
    task = open_task(
        env,
        discount=discount,
        episodes=episodes,
        step_size=step_size,
        policy=policy,
        seed=seed,
        max_episode_steps=max_episode_steps,
    )
    values = table(initial_value, task.world.states)
    run(n_step_td_loop, task, values, n)
    return values


def n_step_td_loop(task: Task, values: Floats, n: int) -> None:
    """Learn ``values``, ``(S,)``, in place."""
    states, rewards, discounts = np.zeros(n, np.int64), np.zeros(n), np.zeros(n)  # the last n steps
    step = 0
    for _ in range(task.episodes):
        state, ended = reset(task.world), False
        first, last = 0, 0  # of the episode's steps, those whose states wait for their update
        while not ended:
            states[last % n] = state
            action = draw(task.behaviour[state], task.generator)
            state, rewards[last % n], discounts[last % n], ended = advance(task, action)
            last += 1
            step += 1
            while first < last and (ended or last - first == n):
                target = values[state]
                for k in range(last - 1, first - 1, -1):
                    target = td_target(rewards[k % n], discounts[k % n], target)
                index = states[first % n]
                toward(values, index, target, rate(task, index, step - 1))
                first += 1


def td_lambda(
    env: Env,
    policy: ArrayLike,
    *,
    trace: float,
    kind: TraceKind = "accumulating",
    discount: float,
    episodes: int,
    step_size: Schedule = 0.1,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> Floats:
    r"""TD(lambda) with eligibility traces (Sutton & Barto 2018, sections 12.2 and 12.5).

        z <- discount * lambda * z, and z(s) is raised
        v <- v + step_size * (r + discount * v(s') - v(s)) * z

    Beside the arguments that all share:

    - ``trace``: lambda in [0, 1]; 0 is TD(0), 1 looks to the end of the episode.
    - ``kind``: How a visit raises z(s). ``"accumulating"`` adds 1, ``"replacing"`` makes it 1,
      ``"true online"`` equals the online forward view exactly (van Seijen & Sutton 2014); it
      adds ``1 - step_size * z(s)`` and corrects for v(s) having changed. A step size that
      varies is the one of s.
    """
    check_trace(trace, kind)
    task = open_task(
        env,
        discount=discount,
        episodes=episodes,
        step_size=step_size,
        policy=policy,
        seed=seed,
        max_episode_steps=max_episode_steps,
    )
    values = table(initial_value, task.world.states)
    run(td_lambda_loop, task, values, float(trace), TRACE_KINDS[kind])
    return values


def td_lambda_loop(task: Task, values: Floats, trace: float, kind: int) -> None:
    """Learn ``values``, ``(S,)``, in place."""
    traces, step = np.zeros(len(values)), 0
    for _ in range(task.episodes):
        state, ended = reset(task.world), False
        traces[:] = 0.0
        bootstrap = values[state]
        while not ended:
            action = draw(task.behaviour[state], task.generator)
            next_state, reward, discount, ended = advance(task, action)
            step_size = rate(task, state, step)
            traces *= task.discount * trace
            mark_trace(traces, state, step_size, kind)
            error = td_target(reward, discount, values[next_state]) - values[state]
            drift = values[state] - bootstrap if kind == TRUE_ONLINE else 0.0
            bootstrap = values[next_state]
            along_traces(values, traces, state, error, drift, step_size)
            state = next_state
            step += 1


def check_n(n: int) -> None:
    """Raise a ValueError unless ``n`` is a number of steps."""
    if not (isinstance(n, numbers.Integral) and n >= 1):
        raise ValueError(f"n={n!r}: the return bootstraps after a whole number of steps, 1 or more")


def check_trace(trace: float, kind: TraceKind) -> None:
    """Raise a ValueError unless ``trace`` is a lambda and ``kind`` a kind of trace."""
    if not (isinstance(trace, numbers.Real) and 0 <= trace <= 1):
        raise ValueError(f"trace={trace!r}: the traces' lambda is a number in [0, 1]")
    if kind not in TRACE_KINDS:
        raise ValueError(
            f"kind={kind!r} is unknown: it is one of {', '.join(map(repr, TRACE_KINDS))}"
        )
