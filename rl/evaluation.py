"""What a trained policy is worth: raw returns of whole episodes, and a look at one of them.

How sure several seeds make us of a result is in ``rl.scores``, whose functions stand here too.
"""

from __future__ import annotations

import inspect
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from launch.errors import UsageError
from launch.streams import key
from rl.envs import EnvSource, VectorEnv, env_name, make_env, make_envs
from rl.listed_envs import ListedEnvs, time_limit
from rl.policy_files import load_policy
from rl.registered_envs import missing_extra
from rl.scores import Curve, bootstrap_interval, iqm, plot_curves
from rl.spaces import Observations, Space, alike

__all__ = [
    "STEP_LIMIT",
    "Curve",
    "Policy",
    "bootstrap_interval",
    "evaluate",
    "iqm",
    "load_policy",
    "plot_curves",
    "record_gif",
]

STEP_LIMIT = 10_000
"""Steps after which ``evaluate`` cuts an episode of an environment that has no limit of its own."""
_AT_ONCE = 64
"""More environments than this do not run side by side."""


class Policy(Protocol):
    """Whatever acts. Where it has an ``observation_space``, that is compared.

    If ``act`` has a parameter ``action_masks``, it is given the environment's.
    """

    def act(self, observations: Any, deterministic: bool = True) -> NDArray[Any]:  # noqa: ANN401 an array, dict or tuple
        """Return an action for each row of ``observations``."""
        ...


def evaluate(
    policy: Policy,
    env: EnvSource | gymnasium.Env[Any, Any],
    *,
    episodes: int = 20,
    seed: int = 0,
    max_episode_steps: int | None = None,
) -> NDArray[np.float64]:
    """Return the undiscounted raw return of each of ``episodes`` episodes, ``(episodes,)``.

    The policy acts deterministically, in environments of its own. Each runs one episode, so that
    short episodes do not count for more than long ones, as they do where the first ``episodes`` to
    end are taken. Episode k is the same whatever ``episodes`` is.

    Args:
        policy: Anything with ``act(observations, deterministic=True)``.
        env: A registered id, a function that makes an environment, a ``TabularMDP``; or one
            environment, in which the episodes run one after another.
        episodes: How many.
        seed: Of the episodes.
        max_episode_steps: Cuts episodes there. Without it an environment's own limit holds, and
            one without any is cut after ``STEP_LIMIT`` steps; what was earned until then counts.

    Raises:
        UsageError: The policy acts in other spaces than the environment's; NaN.
    """
    if episodes < 1:
        raise UsageError(f"episodes={episodes}: at least one episode is needed")
    if isinstance(env, gymnasium.vector.VectorEnv):
        raise UsageError(
            f"got {env}: evaluation runs in environments of its own, so give a registered id or a "
            "function that makes one environment"
        )
    single = isinstance(env, gymnasium.Env)
    seed = key(seed, "evaluate")
    returns: list[float] = []
    while len(returns) < episodes:
        first, count = len(returns), 1 if single else min(_AT_ONCE, episodes - len(returns))
        if isinstance(env, gymnasium.Env):
            limit = max_episode_steps or time_limit(env) or STEP_LIMIT
            envs: VectorEnv = ListedEnvs(
                [env], seed=seed, first=first, max_episode_steps=limit, quota=1
            )
        else:
            envs = _own_envs(env, count, seed, first, max_episode_steps)
        try:
            returns += _one_episode_each(policy, envs)
        finally:
            if not single:
                envs.close()
    return np.array(returns)


def _own_envs(env: EnvSource, count: int, seed: int, first: int, limit: int | None) -> VectorEnv:
    envs = make_envs(env, count, seed=seed, first=first, max_episode_steps=limit, quota=1)
    if envs.time_limit is not None:
        return envs
    envs.close()
    return make_envs(env, count, seed=seed, first=first, max_episode_steps=STEP_LIMIT, quota=1)


def _one_episode_each(policy: Policy, envs: VectorEnv) -> list[float]:
    _check_spaces(policy, envs.observation_space, envs.action_space)
    act = _actor(policy)
    observations = envs.reset()
    running = envs.count
    while running:
        step = envs.step(act(observations, envs.action_masks()))
        observations = step.observations
        running -= int((step.valid & (step.terminated | step.truncated)).sum())
    returns, _ = envs.take_episodes()
    return returns


def _actor(policy: Policy) -> Callable[[Observations, NDArray[np.bool_] | None], NDArray[Any]]:
    """Return ``policy.act``, deterministic, given action masks if it takes any."""
    act: Callable[..., NDArray[Any]] = policy.act
    if "action_masks" not in inspect.signature(act).parameters:
        return lambda observations, masks: act(observations, deterministic=True)
    return lambda observations, masks: act(observations, deterministic=True, action_masks=masks)


def _check_spaces(policy: Policy, observation_space: Space, action_space: Space) -> None:
    for name, space in (("observation", observation_space), ("action", action_space)):
        own = getattr(policy, f"{name}_space", None)
        if own is not None and not alike(own, space):
            raise UsageError(
                f"the policy is of another environment: its {name} space is {own}, and the "
                f"environment's is {space}"
            )


def record_gif(
    policy: Policy,
    env: EnvSource | gymnasium.Env[Any, Any],
    path: Path | str,
    *,
    seed: int = 0,
    fps: int | None = 30,
    max_frames: int = 500,
) -> None:
    """Write one episode of a policy as an animated GIF.

    Args:
        policy: See ``evaluate``.
        env: See ``evaluate``; a function or an environment needs ``render_mode="rgb_array"``.
        path: The file.
        seed: Of the episode.
        fps: Frames a second, one for each step; GIF counts in hundredths of a second. None is the
            environment's own pace (``metadata["render_fps"]``), and of one that is faster than 40
            every second step alone is shown, and the end.
        max_frames: At most.

    Raises:
        UsageError: The environment does not render frames, or a package for it is missing.
    """
    with _without_display():
        frames, pace = _frames(policy, env, seed, fps, max_frames)
    _write_gif(frames, Path(path), pace)


@contextmanager
def _without_display() -> Iterator[None]:
    """Let pygame draw into memory: else it looks for a screen, and says on stderr what is amiss."""
    driver = os.environ.get("SDL_VIDEODRIVER")
    os.environ["SDL_VIDEODRIVER"] = driver or "dummy"
    try:
        yield
    finally:
        if driver is None:
            del os.environ["SDL_VIDEODRIVER"]
        else:
            os.environ["SDL_VIDEODRIVER"] = driver


def _frames(
    policy: Policy,
    env: EnvSource | gymnasium.Env[Any, Any],
    seed: int,
    fps: int | None,
    most: int,
) -> tuple[list[Any], float]:
    """Return what ``record_gif`` writes."""
    if isinstance(env, gymnasium.Env):
        made = env
    else:
        made = make_env(env, render_mode="rgb_array" if isinstance(env, str) else None)
    try:
        if made.render_mode != "rgb_array":
            raise UsageError(
                f"{env_name(env)} has render_mode={made.render_mode!r}: frames need "
                'render_mode="rgb_array", so make the environment with it'
            )
        own = float(made.metadata.get("render_fps") or 30)
        every = 2 if fps is None and own > 40 else 1
        frames = _play(policy, made, key(seed, "evaluate"), every, most)
        return frames, own / every if fps is None else fps
    except gymnasium.error.DependencyNotInstalled as error:
        raise UsageError(missing_extra(f"rendering {env_name(env)}", error)) from error
    finally:
        if made is not env:
            made.close()


def _play(
    policy: Policy, env: gymnasium.Env[Any, Any], seed: int, every: int, most: int
) -> list[Any]:
    envs = ListedEnvs([env], seed=seed, quota=1)
    _check_spaces(policy, envs.observation_space, envs.action_space)
    act = _actor(policy)
    observations, taken, ended = envs.reset(), 0, False
    frames = [env.render()]
    while not ended and len(frames) < most:
        step = envs.step(act(observations, envs.action_masks()))
        observations, taken = step.observations, taken + 1
        ended = bool(step.terminated[0] or step.truncated[0])
        if ended or taken % every == 0:
            frames.append(env.render())
    return frames


def _write_gif(frames: list[Any], path: Path, fps: float) -> None:
    from PIL import Image

    # An octree of 128 colours takes a fifth of the time of the best 256, and hardly shows.
    octree, plain = Image.Quantize.FASTOCTREE, Image.Dither.NONE
    pictures = [
        Image.fromarray(np.asarray(frame, np.uint8)).quantize(128, method=octree, dither=plain)
        for frame in frames
    ]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / fps),
        loop=0,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
