"""DeepSpeed's engine, made without what it prints, compiles and leaves behind."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from launch.errors import UsageError
from launch.spelling import did_you_mean

__all__ = ["Leftovers", "check_settings", "partitioned", "start"]

_USED = (
    *("allgather_bucket_size", "allgather_partitions", "offload_optimizer", "offload_param"),
    *("reduce_bucket_size", "reduce_scatter", "round_robin_gradients", "sub_group_size"),
    *("use_multi_rank_bucket_allreduce", "stage3_use_all_reduce_for_fetch_params"),
    "stage3_allgather_sequential",
)
"""Of ``zero_optimization``; the others have no effect here, or would change the figures."""
_BUCKET = 50_000_000
_MUON = "deepspeed.runtime.zero.muon.original_muon"


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise UsageError if DeepSpeed is missing or a key of ``zero_optimization`` is of no use.

    Args:
        settings: As DeepSpeed has them, such as ``{"reduce_bucket_size": 50_000_000}``.
    """
    _deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    fields = DeepSpeedZeroConfig.model_fields
    known = {x for name, field in fields.items() for x in (name, field.alias) if x}
    for name in settings:
        if name == "stage":
            raise UsageError("deepspeed.stage: the strategy says it: zero1, zero2 or zero3")
        if name not in known:
            raise UsageError(f"deepspeed.{name} is no setting of it{did_you_mean(name, known)}")
        if name not in _USED:
            raise UsageError(f"deepspeed.{name} has no effect here; use {', '.join(_USED)}")
    for name in ("offload_optimizer", "offload_param"):
        place = settings.get(name) or {}
        if isinstance(place, Mapping) and place.get("device", "none") not in ("none", "cpu"):
            raise UsageError(f"deepspeed.{name}.device={place['device']}: use cpu or none")
    try:
        DeepSpeedZeroConfig(stage=3, **settings)
    except ValidationError as caught:
        first = caught.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"deepspeed.{where}={first['input']!r}: {first['msg']}") from None


def start(
    module: nn.Module, trained: Sequence[nn.Parameter], stage: int, settings: Mapping[str, Any]
) -> Any:  # noqa: ANN401 a DeepSpeedEngine
    """Return an engine over a model, of which nothing but the engine knows.

    Its gradient hooks are removed. It is given an optimizer that never steps, so that no state is
    kept for it.
    """
    deepspeed = _deepspeed()
    shell = _Shell(module)
    scalars = _flattened(module)
    engine, *_ = deepspeed.initialize(
        model=shell,
        optimizer=torch.optim.SGD(trained, lr=0.0),
        config=_config(stage, settings, sum(p.numel() for p in trained)),
        dist_init_required=False,
    )
    zero = engine.optimizer
    for hook in zero._grad_acc_hooks:
        hook.remove()
    zero.unregister_grad_acc_post_hooks()
    zero.set_gradient_accumulation_boundary(False)  # gradients are added up until collect
    if stage == 3:
        zero.parameter_offload.destroy()  # its hooks around every module
        zero.micro_step_id = 1  # gradients are added, not copied, to what the buffers hold
        _forget(shell)
    _unflatten(scalars, stage)
    return engine


def partitioned(module: nn.Module, settings: Mapping[str, Any]) -> None:
    """Have each process hold its part of a model's parameters that are not trained."""
    deepspeed = _deepspeed()
    deepspeed.comm.init_distributed(dist_init_required=False, verbose=False)
    scalars = _flattened(module)
    deepspeed.zero.Init(module=_Shell(module), config_dict_or_path=_config(3, settings, 1))
    _unflatten(scalars, 3)


def _config(stage: int, settings: Mapping[str, Any], elements: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": None,
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "reduce_bucket_size": max(1, min(_BUCKET, elements)),
            "overlap_comm": False,
            "stage3_param_persistence_threshold": 0,
            **settings,
            "stage": stage,
        },
    }


def _deepspeed() -> Any:  # noqa: ANN401 a module
    """Return deepspeed, quiet, and without what makes it slow to start.

    It compiles an extension on a CPU, for exchanges in shared memory, which takes a minute at the
    first start and leaves a lock behind where it is killed; torch's own collectives are used. And
    its Muon, which is not used, has torch load its compiler, which takes seconds.
    """
    cpu = not torch.cuda.is_available()
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError:
        raise UsageError(
            "strategies zero1, zero2 and zero3 need DeepSpeed: pip install deepspeed, or use "
            "strategy fsdp or ddp"
        ) from None
    if tuple(int(part) for part in deepspeed.__version__.split(".")[:2]) < (0, 19):
        raise UsageError(
            f"DeepSpeed {deepspeed.__version__} is installed, but 0.19 or newer is needed: "
            "pip install -U deepspeed"
        )
    deepspeed.utils.logger.setLevel("ERROR")
    warnings.filterwarnings(  # its collectives' names, which torch means to change
        "ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning
    )
    if cpu:
        vars(deepspeed.ops)["__compatible_ops__"] = {}
    if _MUON not in sys.modules:
        from deepspeed.runtime import compiler

        given = compiler.compile
        compiler.compile = lambda *_, **__: lambda function: function
        try:
            with contextlib.suppress(ImportError):  # of other versions
                importlib.import_module(_MUON)
        finally:
            compiler.compile = given
    return deepspeed


class _Shell(nn.Module):
    """Takes the hooks and attributes that an engine puts on its model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def _forget(shell: nn.Module) -> None:
    """Drop DeepSpeed's list of roots, which would keep every model for ever."""
    from deepspeed.runtime.zero import parameter_offload

    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [part for part in stack if part is not shell]


def _flattened(module: nn.Module) -> list[nn.Parameter]:
    """Give scalars, which DeepSpeed cannot broadcast, one axis; return them."""
    scalars = [p for p in module.parameters() if p.ndim == 0]
    for p in scalars:
        p.data = p.data.view(1)
    return scalars


def _unflatten(scalars: Sequence[Any], stage: int) -> None:
    for p in scalars:
        if stage == 3:
            p.ds_shape = torch.Size(())
        else:
            p.data = p.data.view(())


class Leftovers:
    """What modules and parameters had before DeepSpeed put things on them."""

    def __init__(self, module: nn.Module) -> None:
        self._modules = [(part, part._parameters, set(vars(part))) for part in module.modules()]
        self._parameters = [(p, set(vars(p))) for p in module.parameters()]

    def clean_modules(self) -> None:
        """Give modules their own tables of parameters, and take away what was added."""
        for part, parameters, names in self._modules:
            vars(part)["_parameters"] = parameters
            for name in set(vars(part)) - names:
                del vars(part)[name]

    def clean_parameters(self) -> None:
        """Take away what was added to parameters."""
        for p, names in self._parameters:
            for name in set(vars(p)) - names:
                del vars(p)[name]
