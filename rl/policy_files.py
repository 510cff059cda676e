"""Policies as folders: ``policy.json`` says what it is, ``model.safetensors`` holds the weights.

A folder appears complete or not at all.
"""

from __future__ import annotations

import json
import math
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
from launch.replacing import folder_to_read, replaced_folder
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
    with replaced_folder(folder, kind="policy", own=(TEXT, WEIGHTS)) as new:
        text = json.dumps(_describe(policy), indent=1, allow_nan=False)
        (new / TEXT).write_text(text + "\n", encoding="utf-8")
        weights = {
            name: x.detach().cpu().contiguous().clone()
            for name, x in policy.network.state_dict().items()
        }
        save_file(weights, new / WEIGHTS)


def load_policy(folder: str | Path) -> Policy:
    """Return the policy that ``Policy.save`` wrote, of its own class, on the CPU.

    Its deterministic actions equal those of the saved one bit for bit.

    Raises:
        UsageError: The folder is missing, holds no policy, or its files are damaged or do not fit
            each other. One line that names the folder.
    """
    folder = folder_to_read(Path(folder))
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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
