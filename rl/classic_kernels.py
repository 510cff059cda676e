"""The compiled steps of classic control: each kernel acts in B environments.

A row of ``rows`` is an environment: its state, then the return and the length of its episode. A
kernel writes what each action led to into ``observations`` ``(B, ...)``, ``rewards`` ``(B,)`` and
``flags`` ``(2, B)`` (terminated, truncated), and returns how many episodes have ended; or -1,
having done nothing, if an action is none of the environment's. The arithmetic is gymnasium's,
operation by operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "acrobot",
    "begin",
    "cart_pole",
    "compiled",
    "mountain_car",
    "pendulum",
    "see_acrobot",
    "see_all",
    "see_pendulum",
    "uniforms",
]

Array: TypeAlias = NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile on first use, and keep the machine code beside the source."""
    try:
        return cast("F", numba.njit(function, cache=True))
    except RuntimeError:  # no folder that could be written to
        return cast("F", numba.njit(function))


@compiled
def uniforms(seed: int, count: int) -> NDArray[np.float64]:
    """Return ``count`` numbers in [0, 1) that only this seed leads to."""
    numbers = np.empty(count)
    state = np.uint64(seed)
    for i in range(count):
        state += np.uint64(0x9E3779B97F4A7C15)
        z = state
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        numbers[i] = float(z >> np.uint64(11)) * 2.0**-53
    return numbers


@compiled
def begin(rows: Array, index: int, low: Array, high: Array, seed: int) -> None:
    """Draw a first state."""
    size = len(low)
    numbers = uniforms(seed, size)
    for j in range(size):
        rows[index, j] = low[j] + (high[j] - low[j]) * numbers[j]
    rows[index, size:] = 0.0


@compiled
def _account(
    row: Array, reward: float, terminated: bool, flags: Array, index: int, limit: float
) -> int:
    """Add to the episode's return and length; return 1 if it has ended, else 0."""
    row[-2] += reward
    row[-1] += 1
    flags[0, index] = terminated
    flags[1, index] = row[-1] >= limit
    return 1 if terminated or row[-1] >= limit else 0


@compiled
def _none_of(actions: Array, count: int) -> bool:
    """Return whether some action is not one of 0 ... count - 1."""
    for action in actions:  # noqa: SIM110 a loop is what numba compiles
        if action < 0 or action >= count:
            return True
    return False


@compiled
def see_all(rows: Array, index: int, observations: Array) -> None:
    """Observe the state itself."""
    for j in range(observations.shape[1]):
        observations[index, j] = rows[index, j]


@compiled
def cart_pole(
    rows: Array, actions: Array, observations: Array, rewards: Array, flags: Array, limit: float
) -> int:
    """Push a cart so that its pole stays up (Barto, Sutton and Anderson 1983)."""
    if _none_of(actions, 2):
        return -1
    ended = 0
    total_mass, pole_moment, length = 0.1 + 1.0, 0.1 * 0.5, 0.5
    angle_limit = 12 * 2 * math.pi / 360
    for i in range(len(rows)):
        row = rows[i]
        x, x_dot, theta, theta_dot = row[0], row[1], row[2], row[3]
        force = 10.0 if actions[i] == 1 else -10.0
        cos, sin = math.cos(theta), math.sin(theta)
        push = (force + pole_moment * (theta_dot * theta_dot) * sin) / total_mass
        theta_acc = (9.8 * sin - cos * push) / (
            length * (4.0 / 3.0 - 0.1 * (cos * cos) / total_mass)
        )
        x_acc = push - pole_moment * theta_acc * cos / total_mass
        row[0] = x = x + 0.02 * x_dot
        row[1] = x_dot + 0.02 * x_acc
        row[2] = theta = theta + 0.02 * theta_dot
        row[3] = theta_dot + 0.02 * theta_acc
        terminated = x < -2.4 or x > 2.4 or theta < -angle_limit or theta > angle_limit
        rewards[i] = 1.0
        ended += _account(row, 1.0, terminated, flags, i, limit)
        see_all(rows, i, observations)
    return ended


@compiled
def mountain_car(
    rows: Array, actions: Array, observations: Array, rewards: Array, flags: Array, limit: float
) -> int:
    """Rock a car out of a valley (Moore 1990)."""
    if _none_of(actions, 3):
        return -1
    ended = 0
    for i in range(len(rows)):
        row = rows[i]
        position, velocity = row[0], row[1]
        velocity += (actions[i] - 1) * 0.001 + math.cos(3 * position) * (-0.0025)
        velocity = min(max(velocity, -0.07), 0.07)
        position = min(max(position + velocity, -1.2), 0.6)
        if position == -1.2 and velocity < 0:
            velocity = 0.0
        row[0], row[1] = position, velocity
        rewards[i] = -1.0
        terminated = position >= 0.5 and velocity >= 0
        ended += _account(row, -1.0, terminated, flags, i, limit)
        see_all(rows, i, observations)
    return ended


@compiled
def _acrobot_slopes(
    a: float, theta1: float, theta2: float, dtheta1: float, dtheta2: float
) -> tuple[float, float]:
    """Accelerations of both links (Sutton and Barto 2018, section 11.3 of the first edition).

    Lengths, masses and moments of inertia are 1, centres of mass at 1/2.
    """
    cos2, sin2 = math.cos(theta2), math.sin(theta2)
    d1 = 0.25 + (1.0 + 0.25 + 2 * 0.5 * cos2) + 1.0 + 1.0
    d2 = (0.25 + 0.5 * cos2) + 1.0
    phi2 = 0.5 * 9.8 * math.cos(theta1 + theta2 - math.pi / 2.0)
    phi1 = (
        -0.5 * (dtheta2 * dtheta2) * sin2
        - 2 * 0.5 * dtheta2 * dtheta1 * sin2
        + (0.5 + 1.0) * 9.8 * math.cos(theta1 - math.pi / 2)
        + phi2
    )
    ddtheta2 = (a + d2 / d1 * phi1 - 0.5 * (dtheta1 * dtheta1) * sin2 - phi2) / (
        0.25 + 1.0 - (d2 * d2) / d1
    )
    return -(d2 * ddtheta2 + phi1) / d1, ddtheta2


@compiled
def _wrapped(x: float) -> float:
    while x > math.pi:
        x -= 2 * math.pi
    while x < -math.pi:
        x += 2 * math.pi
    return x


@compiled
def see_acrobot(rows: Array, index: int, observations: Array) -> None:
    """Observe cosines and sines of both angles, and both velocities."""
    row, observation = rows[index], observations[index]
    observation[0], observation[1] = math.cos(row[0]), math.sin(row[0])
    observation[2], observation[3] = math.cos(row[1]), math.sin(row[1])
    observation[4], observation[5] = row[2], row[3]


@compiled
def acrobot(
    rows: Array, actions: Array, observations: Array, rewards: Array, flags: Array, limit: float
) -> int:
    """Swing two links up (Sutton 1996): one Runge-Kutta step of 0.2 s."""
    if _none_of(actions, 3):
        return -1
    ended = 0
    for i in range(len(rows)):
        row = rows[i]
        a = actions[i] - 1.0
        p, q, v, w = row[0], row[1], row[2], row[3]
        # y + (k1 + 2 k2 + 2 k3 + k4) / 6; the slope of an angle is its velocity.
        v1, w1 = v, w
        f1, g1 = _acrobot_slopes(a, p, q, v1, w1)
        v2, w2 = v + 0.1 * f1, w + 0.1 * g1
        f2, g2 = _acrobot_slopes(a, p + 0.1 * v1, q + 0.1 * w1, v2, w2)
        v3, w3 = v + 0.1 * f2, w + 0.1 * g2
        f3, g3 = _acrobot_slopes(a, p + 0.1 * v2, q + 0.1 * w2, v3, w3)
        v4, w4 = v + 0.2 * f3, w + 0.2 * g3
        f4, g4 = _acrobot_slopes(a, p + 0.2 * v3, q + 0.2 * w3, v4, w4)
        sixth = 0.2 / 6.0
        row[0] = _wrapped(p + sixth * (v1 + 2 * v2 + 2 * v3 + v4))
        row[1] = _wrapped(q + sixth * (w1 + 2 * w2 + 2 * w3 + w4))
        v = v + sixth * (f1 + 2 * f2 + 2 * f3 + f4)
        w = w + sixth * (g1 + 2 * g2 + 2 * g3 + g4)
        row[2] = min(max(v, -4 * math.pi), 4 * math.pi)
        row[3] = min(max(w, -9 * math.pi), 9 * math.pi)
        terminated = -math.cos(row[0]) - math.cos(row[1] + row[0]) > 1.0
        rewards[i] = 0.0 if terminated else -1.0
        ended += _account(row, rewards[i], terminated, flags, i, limit)
        see_acrobot(rows, i, observations)
    return ended


@compiled
def see_pendulum(rows: Array, index: int, observations: Array) -> None:
    """Observe cosine and sine of the angle, and the velocity."""
    row, observation = rows[index], observations[index]
    observation[0], observation[1] = math.cos(row[0]), math.sin(row[0])
    observation[2] = row[1]


@compiled
def pendulum(
    rows: Array, actions: Array, observations: Array, rewards: Array, flags: Array, limit: float
) -> int:
    """Swing a pendulum up with a weak motor."""
    for i in range(len(rows)):
        if math.isnan(actions[i, 0]):
            return -1
    ended = 0
    two_pi = 2 * math.pi
    for i in range(len(rows)):
        row = rows[i]
        theta, velocity = row[0], row[1]
        # gymnasium's torque is float32, and so are its products with plain numbers.
        torque = min(max(np.float32(actions[i, 0]), np.float32(-2.0)), np.float32(2.0))
        angle = ((theta + math.pi) % two_pi) - math.pi
        cost = angle * angle + 0.1 * (velocity * velocity)
        cost += np.float32(np.float32(0.001) * np.float32(torque * torque))
        pull = 3 * 10.0 / 2.0 * math.sin(theta) + np.float32(np.float32(3.0) * torque)
        velocity = min(max(velocity + pull * 0.05, -8.0), 8.0)
        row[0], row[1] = theta + velocity * 0.05, velocity
        rewards[i] = -cost
        ended += _account(row, -cost, False, flags, i, limit)
        see_pendulum(rows, i, observations)
    return ended
