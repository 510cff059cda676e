"""Models as folders: ``config.yaml`` says what it is, ``model.safetensors`` holds the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from generative.attention.transformer import TransformerConfig
from launch.config import from_yaml, to_yaml
from launch.errors import UsageError
from launch.export import SHAPES
from launch.replacing import folder_to_read, replaced_folder
from launch.runtime import Runtime

__all__ = ["ModelConfig", "keep_architecture", "load_model", "new_model", "save_model"]

CONFIG, WEIGHTS = "config.yaml", "model.safetensors"


class ModelConfig(Protocol):
    """What a model is: a frozen dataclass that builds it."""

    def build(self) -> nn.Module:
        """Return the model with random weights; it keeps its config as ``config``."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """What ``config.yaml`` of a model's folder holds."""

    model: ModelConfig = field(default_factory=TransformerConfig)


def new_model(config: ModelConfig, seed: int) -> nn.Module:
    """Return a model whose weights depend on ``seed`` alone; no global random state changes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return config.build()


def save_model(model: nn.Module, folder: Path | str) -> None:
    """Write a model that keeps its ``config`` into a folder, whole or not at all.

    An older model's folder is replaced; what else stands in it is kept.

    Raises:
        UsageError: The config cannot be written as YAML, something else than a model stands there,
            or the disk refuses. What stood there is intact.
    """
    text = _description(model)
    with replaced_folder(Path(folder), kind="model", own=(WEIGHTS, CONFIG)) as new:
        (new / CONFIG).write_text(text, encoding="utf-8")
        save_file(_weights(model), new / WEIGHTS, metadata={"format": "pt"})


def load_model(folder: Path | str) -> nn.Module:
    """Return the model that ``save_model`` wrote, on the CPU, in evaluation mode.

    Raises:
        UsageError: The folder is missing, holds no such model, or its files do not fit each other.
    """
    folder = folder_to_read(Path(folder))
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give one that a model was saved in")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} has no {name}: it holds no model of generative")
    text = (folder / CONFIG).read_text(encoding="utf-8")
    model = from_yaml(text, Described(), source=str(folder / CONFIG)).model.build()
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{folder}: {WEIGHTS} is damaged: {_line(error)}") from None
    except RuntimeError as error:
        raise UsageError(
            f"{folder}: {WEIGHTS} does not fit the model in {CONFIG}: {_line(error)}"
        ) from None
    return model.eval()


def keep_architecture(model: nn.Module, run: Runtime) -> None:
    """Have a run write what ``monro export`` needs besides a checkpoint; before ``run.steps``."""
    if run.output is None:
        return
    text = _description(model)
    shapes = {name: list(x.shape) for name, x in model.state_dict().items()}

    def write(folder: Path) -> None:
        (folder / CONFIG).write_text(text, encoding="utf-8")
        (folder / SHAPES).write_text(json.dumps(shapes, indent=1) + "\n", encoding="utf-8")

    run.keep_architecture(write)


def _description(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    if not callable(getattr(config, "build", None)):
        raise UsageError(
            f"{type(model).__name__} cannot be saved: it keeps no config that builds it; expected "
            "model.config, a frozen dataclass with build()"
        )
    return to_yaml(Described(model=config))  # type: ignore[arg-type]  # looked at above


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().cpu().contiguous().clone() for name, x in model.state_dict().items()}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
