"""Environments for agents: any of gymnasium's, a function that makes one, or a model.

    envs = make_envs("CartPole-v1", 8, seed=0)
    observations = envs.reset()
    while ...:
        step = envs.step(policy.act(observations))
        observations = step.observations

Termination and truncation are settled here, once: ``next_observations`` is what an action led to,
whatever was reset since.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import gymnasium
from gymnasium import vector

from launch.errors import UsageError
from rl.gymnasium_vector import GymnasiumVectorEnvs
from rl.listed_envs import ListedEnvs
from rl.registered_envs import make_registered
from rl.spaces import Observations, check_actions
from rl.vector_env import EnvStep, VectorEnv, episode_seed

__all__ = [
    "Env",
    "EnvSource",
    "EnvStep",
    "GymnasiumVectorEnvs",
    "ListedEnvs",
    "Model",
    "Observations",
    "VectorEnv",
    "check_actions",
    "check_env",
    "env_name",
    "episode_seed",
    "make_async_envs",
    "make_env",
    "make_envs",
]

Env: TypeAlias = gymnasium.Env[Any, Any]


@runtime_checkable
class Model(Protocol):
    """A model that can be played, such as ``rl.mdp.TabularMDP``."""

    def to_env(self, max_episode_steps: int | None = None) -> Env:
        """Return an environment that plays the model."""
        ...


EnvSource: TypeAlias = str | Callable[[], Env] | Model
"""An id that is registered with gymnasium, a function that makes an environment, or a model."""


def make_envs(
    env: EnvSource | vector.VectorEnv[Any, Any, Any],
    count: int,
    *,
    seed: int,
    first: int = 0,
    max_episode_steps: int | None = None,
    quota: int | None = None,
) -> VectorEnv:
    """Return ``count`` environments that are stepped together in this process.

    The classic control ids (CartPole, MountainCar, Acrobot, Pendulum) run compiled: gymnasium's
    transitions, and first states of the same distribution from a stream of their own. All else
    runs in gymnasium's own code.

    Args:
        env: A registered id, a function without arguments that makes a gymnasium environment, a
            ``TabularMDP``, or a ``gymnasium.vector.VectorEnv`` of ``count`` environments.
        count: B, environments of this process.
        seed: Every episode's seed follows from it, the environment's number and the episode's.
        first: Number of this process's first environment among those of all processes.
        max_episode_steps: Truncates episodes there. It takes the place of an id's registered
            limit; a limit that a function's environment has of its own holds as well.
        quota: Episodes that each environment runs before it rests (``valid`` is then False).

    Raises:
        UsageError: No such environment, or not this version; one that cannot be made here.
    """
    _check_counts(count, first, max_episode_steps)
    if isinstance(env, vector.VectorEnv):
        return _adapt(env, count, seed=seed, first=first, limit=max_episode_steps, quota=quota)
    if isinstance(env, str):
        from rl.classic_control import CompiledEnvs, compiled_family

        if compiled_family(env) is not None:
            return CompiledEnvs(
                env,
                count,
                seed=seed,
                first=first,
                max_episode_steps=max_episode_steps,
                quota=quota,
            )
    return ListedEnvs(
        [make_env(env, max_episode_steps=max_episode_steps) for _ in range(count)],
        seed=seed,
        first=first,
        max_episode_steps=max_episode_steps,
        quota=quota,
        name=env_name(env),
    )


def make_async_envs(
    env: EnvSource,
    count: int,
    *,
    seed: int,
    first: int = 0,
    max_episode_steps: int | None = None,
) -> VectorEnv:
    """Return the same environments as ``make_envs``, each in a process of its own.

    It pays where a step takes longer than some 100 us, the price of asking another process.
    Never compiled; the episodes are those of ``ListedEnvs``.
    """
    _check_counts(count, first, max_episode_steps)
    makers = [_Maker(env, max_episode_steps)] * count
    mode = vector.AutoresetMode.DISABLED
    envs = vector.AsyncVectorEnv(makers, autoreset_mode=mode)
    return GymnasiumVectorEnvs(envs, seed=seed, first=first)


def make_env(
    env: EnvSource, *, max_episode_steps: int | None = None, render_mode: str | None = None
) -> Env:
    """Return one environment.

    Args:
        env: See ``make_envs``.
        max_episode_steps: In place of an id's registered limit, or of a model's.
        render_mode: Of an id; a function chooses its own.

    Raises:
        UsageError: See ``make_envs``.
    """
    if isinstance(env, str):
        return make_registered(env, max_episode_steps=max_episode_steps, render_mode=render_mode)
    if isinstance(env, Model):
        return env.to_env(max_episode_steps)
    if isinstance(env, gymnasium.Env):
        raise UsageError(
            f"got the environment {env} itself: give a function that makes one, such as "
            "lambda: MyEnv(), because several are needed"
        )
    if not callable(env):
        raise UsageError(
            f"got {type(env).__name__} for an environment: give a registered id such as "
            "'CartPole-v1', a function that makes a gymnasium environment, or a TabularMDP"
        )
    made = env()
    if not isinstance(made, gymnasium.Env):
        raise UsageError(
            f"{env_name(env)} returned {type(made).__name__}: it has to return a gymnasium.Env"
        )
    return made


def check_env(env: EnvSource) -> None:
    """Raise the UsageError that making this environment would raise."""
    make_env(env).close()


def env_name(env: object) -> str:
    """Return what messages and checkpoints call an environment.

    >>> env_name("CartPole-v1")
    'CartPole-v1'
    """
    if isinstance(env, str):
        return env
    return str(
        getattr(env, "__qualname__", None) or getattr(env, "name", None) or type(env).__name__
    )


class _Maker:
    """Makes an environment in another process; unlike a lambda, it can be pickled by all means."""

    def __init__(self, env: EnvSource, limit: int | None) -> None:
        self.env, self.limit = env, limit

    def __call__(self) -> Env:
        from gymnasium.wrappers import TimeLimit

        made = make_env(self.env, max_episode_steps=self.limit)
        if self.limit is not None and not isinstance(self.env, str):
            made = TimeLimit(made, self.limit)
        return made


def _adapt(
    envs: vector.VectorEnv[Any, Any, Any],
    count: int,
    *,
    seed: int,
    first: int,
    limit: int | None,
    quota: int | None,
) -> VectorEnv:
    if envs.num_envs != count:
        raise UsageError(f"got a vector of {envs.num_envs} environments where {count} are needed")
    if limit is not None:
        raise UsageError(
            f"max_episode_steps={limit} cannot be set on a vector of environments: "
            "set it where they are made"
        )
    return GymnasiumVectorEnvs(envs, seed=seed, first=first, quota=quota)


def _check_counts(count: int, first: int, limit: int | None) -> None:
    if count < 1:
        raise UsageError(f"count={count}: at least one environment is needed")
    if first < 0:
        raise UsageError(f"first={first}: environments are numbered from 0")
    if limit is not None and limit < 1:
        raise UsageError(f"max_episode_steps={limit}: an episode has 1 step or more")
