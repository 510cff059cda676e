"""What a reward returned, held to its contract: one finite number for each sample."""

from __future__ import annotations

import contextvars
import math
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from launch.errors import UsageError
from posttrain.rewards.base import Reward, Sample

__all__ = ["RewardError", "check_rewards", "checked", "reward_name"]


class RewardError(UsageError):
    """A reward raised, never returned, or returned something else than (B,) finite numbers."""


def reward_name(reward: object) -> str:
    """Return the name of a function, or of the class of an object."""
    return str(getattr(reward, "__qualname__", type(reward).__qualname__))


def checked(
    name: str, reward: Reward, samples: Sequence[Sample], *, seconds: float | None = None
) -> Tensor:
    """Call ``reward`` and return ``(B,)`` float32; whatever goes wrong names the reward.

    Args:
        name: What the reward is called in errors.
        reward: May also return a list, tuple or array of numbers.
        samples: B samples.
        seconds: Wall-clock limit of the call. The reward then runs in another thread, because
            only there can it be left behind; it cannot be stopped, so end the process soon.

    Raises:
        RewardError: It raised (the cause is kept), took longer, or returned the wrong shape, None,
            NaN or infinity (the row is named).
    """
    if seconds is None:
        values, error = _outcome(reward, samples)
    else:
        values, error = _outcome_within(seconds, name, reward, samples)
    if error is not None:
        if isinstance(error, RewardError) or not isinstance(error, Exception | SystemExit):
            raise error
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise RewardError(
            f"reward {name} raised {said} (line {where.lineno} of {where.filename}): "
            "return a number, such as 0.0, for a sample that cannot be scored"
        ) from error
    return check_rewards(name, values, len(samples))


def check_rewards(name: str, values: Any, count: int) -> Tensor:  # noqa: ANN401 - user's own
    """Return what a reward returned as ``(count,)`` float32 on the CPU.

    >>> check_rewards("mine", [1, 0.5], 2)
    tensor([1.0000, 0.5000])
    >>> check_rewards("mine", [1, None], 2)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    posttrain.rewards.checking.RewardError: reward mine returned None for row 1: ...

    Raises:
        RewardError: Wrong shape, or a row that is no finite number in float32.
    """
    rewards = _from_tensor(name, values) if hasattr(values, "__array__") else None
    if rewards is None:
        rewards = _from_sequence(name, values)
    if rewards.shape != (count,):
        raise RewardError(
            f"reward {name} returned shape {tuple(rewards.shape)} for {count} samples: expected "
            f"({count},), one number for each sample, in their order; return 0.0 for a sample "
            "that cannot be scored instead of leaving it out"
        )
    wrong = (~rewards.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise _row_error(name, wrong[0], f"{rewards[wrong[0]].item()}")
    return rewards


def _from_tensor(name: str, values: Any) -> Tensor | None:  # noqa: ANN401 - user's own
    """Convert a tensor or an array of numbers; None for an array of objects."""
    if not isinstance(values, Tensor):
        array = values.__array__()
        if array.dtype.kind not in "biuf":
            return None
        values = torch.as_tensor(array.astype("float64"))
    if values.is_complex():
        raise RewardError(f"reward {name} returned complex numbers: expected real ones")
    return values.detach().to(device="cpu", dtype=torch.float32, copy=True)


def _from_sequence(name: str, values: Any) -> Tensor:  # noqa: ANN401 - user's own
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise RewardError(
            f"reward {name} returned {_short(values)}: expected a (B,) tensor or a list with one "
            "number for each sample"
        )
    return torch.tensor([_number(name, row, v) for row, v in enumerate(values)]).float()


def _number(name: str, row: int, value: Any) -> float:  # noqa: ANN401 - user's own
    if isinstance(value, str | bytes) or value is None:  # float("1") would be kind, and hide it
        raise _row_error(name, row, _short(value))
    try:
        number = float(value)
    except Exception as error:  # whatever a user's object raises
        raise _row_error(name, row, _short(value)) from error
    if math.isnan(number):
        raise _row_error(name, row, "nan")
    return number


def _row_error(name: str, row: int, what: str) -> RewardError:
    return RewardError(
        f"reward {name} returned {what} for row {row}: expected a finite number; return 0.0 for a "
        "sample that cannot be scored"
    )


def _short(value: object) -> str:
    text = "None" if value is None else f"{type(value).__name__} {value!r}"
    return text if len(text) <= 80 else text[:77] + "..."


def _outcome(
    reward: Callable[[Sequence[Sample]], Any], samples: Sequence[Sample]
) -> tuple[Any, BaseException | None]:
    try:
        return reward(samples), None
    except BaseException as error:
        return None, error


def _outcome_within(
    seconds: float, name: str, reward: Reward, samples: Sequence[Sample]
) -> tuple[Any, BaseException | None]:
    """Call in a daemon thread, since signals reach the main thread alone, and wait so long."""
    outcome: list[tuple[Any, BaseException | None]] = []
    context = contextvars.copy_context()
    grad = torch.is_grad_enabled()  # a property of the thread

    def call() -> None:
        with torch.set_grad_enabled(grad):
            outcome.append(context.run(_outcome, reward, samples))

    thread = threading.Thread(target=call, name=f"reward {name}", daemon=True)
    thread.start()
    thread.join(min(seconds, threading.TIMEOUT_MAX))
    if not outcome:
        raise RewardError(
            f"reward {name} did not return within {seconds:g} s for {len(samples)} samples: does "
            "it wait for something? Give slow parts a limit of their own, or raise reward_seconds"
        )
    return outcome[0]
