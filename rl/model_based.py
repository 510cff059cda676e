"""Control that learns a model on the way and plans with it: Dyna-Q and prioritized sweeping.

The learned model remembers of each pair what it led to last: true where the environment is
deterministic, else a sample that is as fresh as the last visit. Sutton & Barto 2018, chapter 8.
"""

from __future__ import annotations

import numbers

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
    open_task,
    rate,
    run,
    score,
    table,
)
from rl.tabular_updates import Floats, Ints, q_learning_target, shared, toward
from rl.tabular_worlds import Env, reset

__all__ = ["dyna_q", "prioritized_sweeping"]


def dyna_q(
    env: Env,
    *,
    planning_steps: int,
    discount: float,
    steps: int | None = None,
    episodes: int | None = None,
    step_size: Schedule = 0.1,
    epsilon: Schedule = 0.1,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> ControlResult:
    """Tabular Dyna-Q (Sutton 1990; Sutton & Barto 2018, section 8.2).

    Each step updates as Q-learning does, then ``planning_steps`` times again with what the model
    remembers of a pair drawn uniformly from those tried. (The book draws a state, then one of its
    actions.)

    Beside the arguments that all share:

    - ``planning_steps``: Updates from the model for each step; 0 is Q-learning. A step
      size's visits count the updates of both sources.
    """
    _check_planning(planning_steps)
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
    return control_result(q, run(dyna_q_loop, task, q, planning_steps))


def dyna_q_loop(task: Task, q: Floats, planning_steps: int) -> Floats:
    """Learn ``q``, ``(S, A)``, in place; return the scores of the finished episodes."""
    flat, actions, step = q.reshape(-1), q.shape[1], 0
    next_states, rewards, discounts = _empty_model(len(flat))
    tried, number = np.zeros(len(flat), np.int64), 0
    finished: list[tuple[float, float]] = []
    state = reset(task.world)
    while step < task.steps and len(finished) < task.episodes:
        action = act(task, q, state, step)
        next_state, reward, discount, ended = advance(task, action)
        index = state * actions + action
        target = q_learning_target(reward, discount, q[next_state])
        toward(flat, index, target, rate(task, index, step))
        if next_states[index] < 0:
            tried[number] = index
            number += 1
        next_states[index], rewards[index], discounts[index] = next_state, reward, discount
        for _ in range(planning_steps):
            index = tried[int(task.generator.random() * number)]
            target = q_learning_target(rewards[index], discounts[index], q[next_states[index]])
            toward(flat, index, target, rate(task, index, step))
        state = next_state
        step += 1
        if ended:
            finished.append(score(task))
            state = reset(task.world)
    return as_rows(finished)


def prioritized_sweeping(
    env: Env,
    *,
    planning_steps: int,
    threshold: float = 1e-4,
    discount: float,
    steps: int | None = None,
    episodes: int | None = None,
    step_size: Schedule = 0.1,
    epsilon: Schedule = 0.1,
    seed: Seed = 0,
    initial_value: ArrayLike = 0.0,
    max_episode_steps: int | None = None,
) -> ControlResult:
    """Prioritized sweeping (Moore & Atkeson 1993; Sutton & Barto 2018, section 8.4).

    All updates come from the model, the most urgent first: a pair's priority is the size of its
    error ``|r + discount * max_a' q(s', a') - q(s, a)|``, and after an update of q(s, a) the errors
    of the pairs that lead to s are taken anew. Each update costs time proportional to S * A.

    Beside the arguments that all share:

    - ``planning_steps``: Most updates for each step.
    - ``threshold``: Errors up to this are let be; in units of return.

    In a deterministic environment ``step_size=1`` is right.
    """
    _check_planning(planning_steps)
    if not threshold >= 0:
        raise ValueError(
            f"threshold={threshold!r}: it is compared with an absolute value, use >= 0"
        )
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
    finished = run(prioritized_sweeping_loop, task, q, planning_steps, float(threshold))
    return control_result(q, finished)


def prioritized_sweeping_loop(
    task: Task, q: Floats, planning_steps: int, threshold: float
) -> Floats:
    """Learn ``q``, ``(S, A)``, in place; return the scores of the finished episodes."""
    flat, actions, step = q.reshape(-1), q.shape[1], 0
    next_states, rewards, discounts = _empty_model(len(flat))
    priorities = np.zeros(len(flat))
    finished: list[tuple[float, float]] = []
    state = reset(task.world)
    while step < task.steps and len(finished) < task.episodes:
        action = act(task, q, state, step)
        next_state, reward, discount, ended = advance(task, action)
        index = state * actions + action
        next_states[index], rewards[index], discounts[index] = next_state, reward, discount
        priorities[index] = abs(q_learning_target(reward, discount, q[next_state]) - flat[index])
        for _ in range(planning_steps):
            index = int(priorities.argmax())
            if priorities[index] <= threshold:
                break
            target = q_learning_target(rewards[index], discounts[index], q[next_states[index]])
            toward(flat, index, target, rate(task, index, step))
            priorities[index] = 0.0
            updated = index // actions
            for before in range(len(flat)):
                if next_states[before] == updated:
                    target = q_learning_target(rewards[before], discounts[before], q[updated])
                    priorities[before] = abs(target - flat[before])
        state = next_state
        step += 1
        if ended:
            finished.append(score(task))
            state = reset(task.world)
    return as_rows(finished)


@shared
def _empty_model(pairs: int) -> tuple[Ints, Floats, Floats]:
    """Return next states (-1: not tried yet), rewards and discounts of all pairs."""
    return np.full(pairs, -1, np.int64), np.zeros(pairs), np.zeros(pairs)


def _check_planning(planning_steps: int) -> None:
    if not (isinstance(planning_steps, numbers.Integral) and planning_steps >= 0):
        raise ValueError(
            f"planning_steps={planning_steps!r}: use a whole number of updates, 0 or more"
        )
