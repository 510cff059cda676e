"""Environments that are registered with gymnasium, made by their ids."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium

from launch.errors import UsageError

__all__ = ["make_registered", "missing_extra"]

_EXTRAS = {"box2d": "box2d", "pygame": "render"}
"""What gymnasium's message names, and monro's extra that installs it."""


def make_registered(
    env: str, *, max_episode_steps: int | None = None, render_mode: str | None = None
) -> gymnasium.Env[Any, Any]:
    """Return the environment of an id.

    Args:
        env: Such as ``"CartPole-v1"``, or ``"module:Id-v0"``, where the module registers it.
        max_episode_steps: In place of the registered limit.
        render_mode: How it is drawn.

    Raises:
        UsageError: No such name or version, where the message names one there is; or a package
            that it needs is not installed.
    """
    try:
        with warnings.catch_warnings():  # make() first warns of versions that it then refuses
            warnings.simplefilter("ignore")
            if ":" not in env:  # else make() imports the module that registers it
                gymnasium.spec(env)
        return _make(env, max_episode_steps, render_mode)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UsageError(missing_extra(env, error)) from error
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise UsageError(f"no environment {env!r}: {_one_line(error)}") from error


def _make(env: str, limit: int | None, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    if render_mode is None:  # not every environment takes one
        return gymnasium.make(env, max_episode_steps=limit, disable_env_checker=True)
    with warnings.catch_warnings():  # of a mode that is not listed; whether it draws is seen then
        warnings.filterwarnings("ignore", message=".*render_mode")
        return gymnasium.make(
            env, max_episode_steps=limit, disable_env_checker=True, render_mode=render_mode
        )


def missing_extra(env: str, error: Exception) -> str:
    """Return what to say of a package that an environment needs and that is not installed."""
    said = _one_line(error)
    for package, extra in _EXTRAS.items():
        if package in said.lower():
            return f'{env} needs what is not installed: pip install "monro[{extra}]" ({said})'
    return f"{env} needs what is not installed: {said}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
