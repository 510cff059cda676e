"""One interface over the ways to run: a single process, DDP, ZeRO or FSDP over several.

Here and in ``launch.fsdp`` and ``launch.zero`` are the quirks of accelerate, torch and DeepSpeed:

- ``accelerate launch --cpu --num_processes 2`` starts one process without a word, so the world
  size is compared with what was asked for.
- DDP averages gradients; ``backward`` takes a share of a sum, so it multiplies by the world size.
- DDP sees only what goes through its own forward. ``Routed`` runs any function of the bare model
  inside it, so that a loss may use the model's parts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launch.errors import UsageError
from launch.placement import Placement, optimizer_bytes, place, placement_of, unplace
from launch.processes import launched_processes
from launch.strategies import (
    Strategy,
    check_precision,
    check_strategy,
    choose,
    device_bytes,
    training_bytes,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Backend", "Precision", "Routed", "Strategy", "unwrap"]

Precision = Literal["fp32", "bf16", "fp16"]

P = ParamSpec("P")
R = TypeVar("R")

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Inner(nn.Module):
    """What DDP wraps: its forward runs the function it is given on the bare model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:  # noqa: ANN401 whatever the function returns
        return function(self.module, *arguments, **named)


class Routed(nn.Module):
    """A prepared model: ``forward`` is the model's own; ``call`` runs any function of it inside.

    What goes through ``call`` is seen by DDP and runs under the run's precision.
    """

    def __init__(self, placement: Placement, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.wrapped = placement.wrapped
        self._placement = placement
        self._autocast = autocast

    @property
    def bare(self) -> nn.Module:
        """The model as it was given to ``prepare``; it shares the parameters."""
        return self._placement.module

    def call(
        self, function: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Return ``function(bare model, *args, **kwargs)``, run inside the wrapped forward."""
        if self._placement.released and torch.is_grad_enabled():
            raise UsageError(
                "the model is whole again, because the loop of run.steps has ended, and gradients "
                "would no longer be summed over the processes: prepare it anew"
            )
        with self._precision():
            return self.wrapped(function, args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 the model's own signature
        """Run the model's own forward."""
        return self.call(lambda model, *a, **k: model(*a, **k), *args, **kwargs)

    def _precision(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        device = next(self.bare.parameters()).device.type
        return torch.autocast(device, dtype=self._autocast)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model as it was given to ``prepare``; a bare model comes back as it is."""
    return model.bare if isinstance(model, Routed) else model


class Backend:
    """Processes, devices and the training step. Everything here is told by ``Runtime``."""

    def __init__(
        self,
        strategy: Strategy,
        precision: Precision,
        asked: int | None,
        trackers: Sequence[str],
        *,
        offload: bool = False,
        deepspeed: Mapping[str, Any] | None = None,
    ) -> None:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        asked = launched_processes() if asked is None else asked
        check_strategy(strategy, world, asked, offload=offload, deepspeed=deepspeed or {})
        self.strategy = strategy
        self.deepspeed = dict(deepspeed or {})
        if strategy in ("zero1", "zero2", "zero3"):
            from launch.zero_engine import check_settings

            check_settings(self.deepspeed)
        self._chosen: set[str] = set()
        self.trackers = _available(trackers)
        self._tracking = False
        self._accelerator: Accelerator | None = None
        if world > 1 or self.trackers:
            self._accelerator = _accelerator(world, self.trackers)
            self.device: torch.device = self._accelerator.device
        else:
            self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.world_size = world
        self.rank = int(os.environ.get("RANK", "0")) if world > 1 else 0
        check_precision(precision, self.device)
        self.offload = offload
        self.autocast = _TYPES.get(precision)
        self.scaler = _scaler(self.device, world) if precision == "fp16" else None
        self._placed: list[Placement] = []

    def prepare(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> nn.Module:
        """Move the model to this process's device and place it as the strategy has it."""
        self.release(model)
        strategy = self._strategy_for(model, optimizers)
        model.to(self.device)
        placement = self._place(model, _Inner(model), optimizers, strategy)
        place(placement)
        self._placed.append(placement)
        if self.world_size == 1 and self.autocast is None:
            return model
        return Routed(placement, self.autocast)

    def _strategy_for(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
    ) -> Strategy:
        """Return what was asked for; ``auto`` looks at the model, and says so where it matters."""
        if self.strategy != "auto":
            return self.strategy
        needs, room = training_bytes(model, optimizers), device_bytes(self.device)
        strategy, why = choose(self.world_size, self.device, needs, room)
        if self.rank == 0 and self.world_size > 1 and why not in self._chosen:
            print(why, flush=True)
            self._chosen.add(why)
        return strategy

    def _place(
        self,
        model: nn.Module,
        inner: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        strategy: Strategy,
    ) -> Placement:
        trained = any(p.requires_grad for p in model.parameters())
        if self.world_size > 1:
            with torch.no_grad():
                for x in (*model.parameters(), *model.buffers()):
                    dist.broadcast(x, src=0)
        if strategy == "fsdp":
            from launch.fsdp import FullyShardedPlacement

            return FullyShardedPlacement(model, inner, optimizers, self.device, self.offload)
        if strategy in ("zero1", "zero2", "zero3") and (trained or strategy == "zero3"):
            from launch.zero import ZeROPlacement

            stage = int(strategy.removeprefix("zero"))
            settings = _offloading(self.device, stage) if self.offload else {}
            settings |= self.deepspeed
            return ZeROPlacement(model, inner, optimizers, self.device, stage, settings)
        if self._accelerator is not None and self.world_size > 1 and trained:
            inner = self._accelerator.prepare_model(inner)
        return Placement(model, inner, optimizers)

    def release(self, model: nn.Module) -> None:
        """Make a prepared model whole and ordinary again; another stays as it is."""
        placement = placement_of(model)
        if placement in self._placed:
            self._placed.remove(placement)
            placement.release()
            unplace(placement)

    def placements(self, optimizer: torch.optim.Optimizer) -> list[Placement]:
        """Return the placements whose pieces or parameters an optimizer updates."""
        return [x for x in self._placed if any(own is optimizer for own in x.optimizers)]

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Hold back the exchange of gradients inside the block, unless it is the ``last`` one."""
        with ExitStack() as stack:
            for placement in self._placed:
                stack.enter_context(placement.accumulating(last))
            yield

    def held_bytes(self) -> tuple[int, int]:
        """Return the most bytes of parameters, and of optimizer state, that a process holds."""
        parameters = sum(x.parameter_bytes() for x in self._placed)
        states = optimizer_bytes(own for x in self._placed for own in x.optimizers)
        found = self.all_reduce(torch.tensor([parameters, states]), largest=True).tolist()
        return int(found[0]), int(found[1])

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's share of a sum over all processes."""
        if self.world_size > 1:
            loss = loss * self.world_size  # every strategy divides by it
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        torch.autograd.backward(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo fp16's loss scale on the gradients."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Update the parameters; False if fp16 overflowed and the update was left out."""
        if self.scaler is None:
            optimizer.step()
            return True
        scale = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= scale

    def all_reduce(self, x: Tensor, *, largest: bool = False) -> Tensor:
        """Return the sum (or the largest) of ``x`` over processes, as a new tensor."""
        x = x.detach().clone().to(self.device)
        if self.world_size > 1:
            dist.all_reduce(x, op=dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
        return x

    def gather_objects(self, thing: object) -> list[Any]:
        """Return every process's ``thing``, in order of rank."""
        if self.world_size == 1:
            return [thing]
        things: list[Any] = [None] * self.world_size
        dist.all_gather_object(things, thing)
        return things

    def broadcast_object(self, thing: object) -> Any:  # noqa: ANN401 whatever rank 0 gave
        """Return what rank 0 gave."""
        if self.world_size == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def check_alike(self, *things: object) -> None:
        """Raise UsageError on every process if they were not all given the same.

        Processes that disagree on a config would wait for each other in different places.
        """
        if self.world_size == 1:
            return
        own = hashlib.sha256(repr(things).encode()).hexdigest()
        found = self.gather_objects(own)
        other = [rank for rank, digest in enumerate(found) if digest != found[0]]
        if other:
            raise UsageError(
                f"process {other[0]} was given another config than process 0: start all with the "
                "same command, and with the same files on every machine"
            )

    def barrier(self) -> None:
        """Wait for every process."""
        if self.world_size > 1:
            dist.barrier()

    def on_main(self, function: Callable[[], object]) -> None:
        """Run ``function`` on the main process; its error is raised on every process."""
        error: str | None = None
        if self.rank == 0:
            try:
                function()
            except (OSError, UsageError) as caught:
                error = str(caught)
        error = self.broadcast_object(error)
        if error is not None:
            raise UsageError(error)

    def on_all(self, function: Callable[[], object]) -> None:
        """Run ``function`` on every process; an error on one is raised on all."""
        error: str | None = None
        try:
            function()
        except (OSError, UsageError) as caught:
            error = str(caught)
        errors = [e for e in self.gather_objects(error) if e is not None]
        if errors:
            raise UsageError(errors[0])

    def track(self, folder: Path, name: str) -> None:
        """Start the trackers; they write under ``folder``."""
        if self._accelerator is not None and self.trackers and not self._tracking:
            self._accelerator.project_configuration.logging_dir = str(folder)
            self._accelerator.init_trackers(name)
            self._tracking = True

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Pass figures on to the trackers."""
        if self._tracking and self._accelerator is not None:
            self._accelerator.log(figures, step=step)

    def end(self) -> None:
        """Close trackers and process groups."""
        if self._tracking and self._accelerator is not None:
            for tracker in self._accelerator.trackers:
                tracker.finish()
            self._tracking = False
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _offloading(device: torch.device, stage: int) -> dict[str, Any]:
    """Return DeepSpeed's settings for what lies in the machine's memory; on a CPU all does."""
    if device.type == "cpu":
        return {}
    names = ["offload_optimizer", "offload_param"] if stage == 3 else ["offload_optimizer"]
    return {name: {"device": "cpu", "pin_memory": True} for name in names}


def _scaler(device: torch.device, world: int) -> torch.amp.GradScaler:
    """Return fp16's loss scale; several processes agree on whether a gradient overflowed."""
    if world == 1:
        return torch.amp.GradScaler(device.type)
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    return ShardedGradScaler(device.type)


def _available(trackers: Sequence[str]) -> list[str]:
    if not trackers:
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = {str(name) for name in LOGGER_TYPE_TO_CLASS}
    present = {str(name) for name in get_available_trackers()}
    for name in trackers:
        if name not in known:
            raise UsageError(f"unknown tracker {name!r}: use one of {', '.join(sorted(known))}")
        if name not in present:
            raise UsageError(f"tracker {name!r} is not installed: pip install {name}")
    return list(trackers)


def _accelerator(world: int, trackers: Sequence[str]) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    on_cpu = not torch.cuda.is_available()
    handlers = [InitProcessGroupKwargs(backend="gloo")] if on_cpu and world > 1 else []
    accelerator = Accelerator(
        cpu=on_cpu, log_with=list(trackers) or None, kwargs_handlers=handlers, project_dir="."
    )
    if accelerator.num_processes != world:
        raise UsageError(
            f"WORLD_SIZE is {world}, but accelerate runs {accelerator.num_processes} processes: "
            "start the run with accelerate launch or monro run --processes"
        )
    return accelerator
