"""Policies as folders: ``policy.json`` says what it is, ``model.safetensors`` holds the weights.

A folder appears complete or not at all. It is replaced by two renames; where a process dies between
them, the older policy is still found.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from launch.conversion import Change, build, is_object, load_object
from launch.encoding import encode
from launch.errors import UsageError
from launch.folder import synchronize
from launch.scalars import ABSENT
from rl.networks import Network, NetworkConfig
from rl.normalisation import ObservationNormaliser
from rl.space_text import Plain, space_from_plain, space_to_plain

if TYPE_CHECKING:
    from rl.policies import Policy

__all__ = ["load_policy", "save_policy"]

TEXT, WEIGHTS = "policy.json", "model.safetensors"
FORMAT = 1


def save_policy(policy: Policy, folder: Path) -> None:
    """Write a policy into ``folder``, made if it is not there; an older policy is replaced.

    Other files beside an older policy are kept.

    Raises:
        UsageError: Something else than a policy stands there, the network has no config that can
            be written, or the disk refuses. What stood there is intact.
    """
    temporary, old = _beside(folder, f"{os.getpid()}.tmp"), _beside(folder, "old")
    try:
        _recover(folder)
        _check_replaceable(folder)
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        text = json.dumps(_describe(policy), indent=1, allow_nan=False)
        (temporary / TEXT).write_text(text + "\n", encoding="utf-8")
        weights = {
            name: x.detach().cpu().contiguous().clone()
            for name, x in policy.network.state_dict().items()
        }
        save_file(weights, temporary / WEIGHTS)
        for path in (temporary / TEXT, temporary / WEIGHTS, temporary):
            synchronize(path)
        if folder.is_dir():
            _copy_others(folder, temporary)
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        synchronize(folder.absolute().parent)
    except OSError as error:
        _recover(folder)
        raise UsageError(
            f"the policy folder {folder} cannot be written: {error.strerror or error}"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_policy(folder: str | Path) -> Policy:
    """Return the policy that ``Policy.save`` wrote, of its own class, on the CPU.

    Its deterministic actions equal those of the saved one bit for bit.

    Raises:
        UsageError: The folder is missing, holds no policy, or its files are damaged or do not fit
            each other. One line that names the folder.
    """
    folder = Path(folder)
    if not folder.exists() and _beside(folder, "old").is_dir():
        folder = _beside(folder, "old")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give one that a policy was saved in")
    for name in (TEXT, WEIGHTS):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} has no {name}: it holds no policy")
    try:
        text = json.loads((folder / TEXT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: {TEXT} cannot be read: {_line(error)}") from None
    version = text.get("format") if isinstance(text, dict) else None
    if version != FORMAT:
        raise UsageError(
            f"{folder}: {TEXT} has format {version!r}, expected {FORMAT}: it was written by "
            "another version of monro, or by something else"
        )
    try:
        policy = _rebuild(text)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        lacks = "lacks " if isinstance(error, KeyError) else ""
        raise UsageError(f"{folder}: {TEXT} describes no policy: {lacks}{_line(error)}") from None
    try:
        policy.network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{folder}: {WEIGHTS} is damaged: {_line(error)}") from None
    except RuntimeError as error:
        raise UsageError(
            f"{folder}: {WEIGHTS} does not fit the network in {TEXT}: {_line(error)}"
        ) from None
    return policy


# -- text ----------------------------------------------------------------------------------------


def _describe(policy: Policy) -> dict[str, Plain]:
    config = policy.network.config
    if not is_object(config):
        raise UsageError(
            f"the network cannot be saved: its config is {config!r}, expected a frozen dataclass "
            "with build(observation_space, outputs, generator)"
        )
    kind = type(policy)
    return {
        "format": FORMAT,
        "policy": f"{kind.__module__}:{kind.__qualname__}",
        "env": policy.env_id,
        "seed": policy.seed,
        "exploration": policy.exploration,
        "observation_space": dict(space_to_plain(policy.observation_space)),
        "action_space": dict(space_to_plain(policy.action_space)),
        "network": encode(config, object, "network"),
        "normaliser": _describe_normaliser(policy.normaliser),
    }


def _describe_normaliser(normaliser: ObservationNormaliser | None) -> Plain:
    """Return its numbers; Python writes a float so that it reads back exactly."""
    if normaliser is None:
        return None
    items = normaliser.state_dict().items()
    return {name: x.tolist() if isinstance(x, Tensor) else _number(x) for name, x in items}


def _number(x: float) -> float | str:
    return x if math.isfinite(x) else str(x)


def _rebuild(text: Mapping[str, Any]) -> Policy:
    from rl.policies import Policy  # which imports this module

    kind = load_object(text["policy"], "policy")
    if not (isinstance(kind, type) and issubclass(kind, Policy)):
        raise ValueError(f"{text['policy']} is no policy")
    observation_space = space_from_plain(text["observation_space"])
    action_space = space_from_plain(text["action_space"])
    config: NetworkConfig = build(Change(text["network"]), object, ABSENT, "network")
    network = config.build(
        observation_space, kind.outputs_of(action_space), torch.Generator().manual_seed(0)
    )
    if not isinstance(network, Network):
        raise ValueError(f"{text['network']} builds no network")
    normaliser = None
    if text["normaliser"] is not None:
        normaliser = ObservationNormaliser(observation_space.shape)
        normaliser.load_state_dict(text["normaliser"])
    return kind(
        network,
        observation_space,
        action_space,
        normaliser=normaliser,
        env_id=text["env"],
        seed=text["seed"],
        exploration=text["exploration"],
    )


# -- the folder ----------------------------------------------------------------------------------


def _beside(folder: Path, end: str) -> Path:
    return folder.with_name(f".{folder.name}.{end}")


def _recover(folder: Path) -> None:
    """Put an older policy back where a process died before its successor took its name."""
    old = _beside(folder, "old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)


def _copy_others(folder: Path, target: Path) -> None:
    """Copy what stands beside a policy, such as a video."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        elif path.name not in (TEXT, WEIGHTS):
            shutil.copy2(path, target / path.name)


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: a policy is saved as a folder, give another name")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TEXT).is_file():
        raise UsageError(
            f"{folder} holds something else than a policy (it has no {TEXT}): give a new folder"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
