"""LoRA adapters on a language model, by peft, which is imported inside functions.

Of an adapted model only small matrices are trained; the model without them is its own reference.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from launch.checkpoint import Stateful
from launch.errors import UsageError
from launch.folder import atomic_write
from launch.placement import assign, whole_state
from posttrain.decoder import Untyped
from posttrain.decoder_adapters import is_adapted, merged_weight
from posttrain.models import LanguageModel, quiet

__all__ = [
    "LoRA",
    "adapters_off",
    "check_undropped",
    "has_adapters",
    "merge_adapters",
    "parse_lora",
    "save_adapter",
    "trained_state",
    "with_adapters",
]

_LINEAR = ("Linear", "Conv1D")  # torch's, and transformers' transposed one


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRA:
    r"""Low-rank adapters of linear layers (Hu et al. 2021, arXiv:2106.09685, eq. 3).

    y = W x + (alpha / rank) B A x,  A: (rank, D) random,  B: (M, rank) zeros at first
    """

    rank: int = 16
    alpha: float = 32.0
    """Divided by ``rank``, it scales what the adapters add."""
    dropout: float = 0.0
    """Of the adapters' inputs while training; for supervised training alone."""
    targets: tuple[str, ...] = ()
    """Names of linear layers, such as ``q_proj``; none takes all of them but the head."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: an adapter needs a rank of at least 1")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha={self.alpha}: give a positive, finite number")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: give a share from 0 to less than 1")

    def check(self) -> None:
        """Raise UsageError if peft is not installed."""
        if importlib.util.find_spec("peft") is None:
            raise UsageError("LoRA needs peft, which is not installed: pip install monro[lora]")

    def check_undropped(self, what: str) -> None:
        """Raise UsageError if ``dropout`` is above 0, for training that compares two passes."""
        _check_undropped(self.dropout, what)


def parse_lora(text: str) -> LoRA:
    """Read ``--lora TEXT``: a rank, whose alpha is twice that.

    >>> parse_lora("8")
    LoRA(rank=8, alpha=16.0, dropout=0.0, targets=())
    """
    if not text.strip().isdigit():
        raise ValueError(f"{text!r} is no rank: give a whole number, such as 16")
    return LoRA(rank=int(text), alpha=2.0 * int(text))


def with_adapters(lm: LanguageModel, lora: LoRA, *, seed: int = 0) -> LanguageModel:
    """Return ``lm`` with adapters, which change nothing yet and are all that is trained.

    The base weights are those of ``lm`` itself, not copies; ``lm`` stays as it is.

    Args:
        lm: A causal language model of transformers.
        lora: Rank, scale and where.
        seed: The adapters' random half depends on it alone.

    Raises:
        UsageError: peft is not installed, a target matches no linear layer, or ``lm`` has
            adapters already.
    """
    lora.check()
    if has_adapters(lm.model):
        raise UsageError("the model has adapters already: merge them first (merge_adapters)")
    layers = _targeted(lm.model, lora.targets)
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
        fan_in_fan_out=all(type(layer).__name__ == "Conv1D" for layer in layers),
        task_type="CAUSAL_LM",
        base_model_name_or_path=lm.model.config._name_or_path or None,
    )
    model = _sharing(lm.model)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for p in _adapters(model).values():
        p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
    for module in model.modules():
        if is_adapted(module):
            module.train(lora.dropout > 0)  # whatever mode the model is in
    return replace(lm, model=model)


def merge_adapters(lm: LanguageModel) -> LanguageModel:
    """Return ``lm`` as an ordinary model, its adapters added to copies of the weights they change.

    ``lm`` stays as it is; one without adapters comes back itself.
    """
    if not has_adapters(lm.model):
        return lm
    model = _sharing(lm.model)
    for name, module in list(model.named_modules()):
        if is_adapted(module):
            weight = merged_weight(module)
            base: Untyped = module.base_layer
            base.weight = nn.Parameter(weight)
            model.set_submodule(name, base)
    del model.peft_config
    return replace(lm, model=model.requires_grad_(True))


def has_adapters(model: nn.Module) -> bool:
    """Return whether any layer of a model has a LoRA adapter."""
    return any(is_adapted(module) for module in model.modules())


def check_undropped(model: nn.Module, what: str) -> None:
    """Raise UsageError if a model's adapters have dropout, as ``LoRA.check_undropped`` does."""
    layers = (module for module in model.modules() if is_adapted(module))
    shares = [x.p for layer in layers for x in layer.modules() if type(x) is nn.Dropout]
    _check_undropped(max(shares, default=0.0), what)


def _check_undropped(dropout: float, what: str) -> None:
    if dropout:
        raise UsageError(
            f"lora.dropout={dropout}: {what} compares log-probabilities of several passes, which "
            "dropout would make differ by chance; use 0"
        )


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Make a model what it was without its adapters inside the block."""
    layers: list[Untyped] = [module for module in model.modules() if is_adapted(module)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def trained_state(model: nn.Module) -> Stateful:
    """Return what a checkpoint keeps of a model: its adapters if it has any, or all of it."""
    return _AdapterState(model) if has_adapters(model) else model


class _AdapterState:
    """The adapters of a model, without what they adapt."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        """Return every adapter's matrices by name."""
        return whole_state(self.model, _adapters(self.model))

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Tensor], /) -> None:
        """Take what ``state_dict`` returned."""
        if _adapters(self.model).keys() != state_dict.keys():
            raise UsageError("the checkpoint has adapters of other layers: resume with its lora")
        assign(self.model, state_dict)


def save_adapter(model: Untyped, folder: Path) -> None:
    """Write adapters as peft does; ``PeftModel.from_pretrained(base, folder)`` reads them.

    Raises:
        OSError: They could not be written; a file of that name is as it was.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"base_model.model.{name.replace('.default.', '.')}": p.detach().cpu().contiguous()
        for name, p in _adapters(model).items()
    }
    config: dict[str, Any] = model.peft_config["default"].to_dict()
    config |= {"inference_mode": True}
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    atomic_write(folder / "adapter_model.safetensors", save(weights, {"format": "pt"}))
    atomic_write(folder / "adapter_config.json", json.dumps(plain, indent=2) + "\n")


def _adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if ".lora_" in name}


def _sharing(model: Untyped) -> Untyped:
    """Return a model of its own modules, whose parameters and buffers lie where ``model``'s do."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()
    }
    memo |= {id(x): x.detach() for x in model.buffers()}
    return copy.deepcopy(model, memo)


def _targeted(model: Untyped, targets: tuple[str, ...]) -> list[nn.Module]:
    """Return the layers meant; raise UsageError for a name that is no linear layer, or the head."""
    head = model.get_output_embeddings()
    layers = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in _LINEAR and module is not head
    }
    for target in targets:
        if not any(_matches(name, target) for name in layers):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise UsageError(
                f"lora.targets: {target!r} matches no linear layer of {type(model).__name__} "
                f"below its head; there are {known}"
            )
    meant = [m for name, m in layers.items() if any(_matches(name, target) for target in targets)]
    return meant if targets else list(layers.values())


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
