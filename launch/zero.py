"""Optimizer state, gradients and parameters in pieces, by DeepSpeed: ZeRO stages 1, 2 and 3.

Rajbhandari et al. 2020, arXiv:1910.02054. DeepSpeed partitions, reduces gradients into partitions
and gathers parameters. Its engine's step, clipping and accumulation are left aside: the optimizer
is the user's own, and has the pieces of each parameter that lie in this process's partition, as
views of it. A plain ``backward`` may therefore go through any number of models, any number of
times, before a step.

Two things of DeepSpeed's are done here in its stead, with its own methods:

- Its gradient hooks reduce in the order in which gradients arrive. Here it is the parameters' own
  order, from last to first, so that processes whose graphs differ still add what belongs together;
  one without a gradient counts as zero.
- ``launch.gathering`` gathers the parameters of stage 3.

Relied on, of DeepSpeed 0.19, though not documented: of the optimizers of stages 1 and 2
``setup_buckets``, ``params_in_partition``, ``all_grad_tensors``, ``partition_size``,
``single_partition_of_fp32_groups``, ``bit16_groups_flat``, ``round_robin_bit16_groups`` and
``_offsets``, ``update_lp_params``, and for offloading ``accumulated_grads_in_cpu``; of stage 3
``grad_position``, ``fp32_partitioned_groups_flat``, ``fp16_partitioned_groups_flat`` and its table
of gradients by ``ds_id``; of both ``reduce_independent_p_g_buckets_and_remove_grads``,
``overlapping_partition_gradients_reduce_epilogue``, ``get_param_id`` and ``micro_step_id``; of a
parameter ``ds_tensor``, ``ds_shape``, ``all_gather_coalesced`` and ``partition``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launch.errors import UsageError
from launch.fsdp import blocks
from launch.gathering import Gathering, at_end_of_backward
from launch.placement import Piece, Placement, Whole, as_piece, check_elementwise, hand_over
from launch.zero_engine import Leftovers, check_settings, partitioned, start

__all__ = ["ZeROPlacement", "check_settings"]


class ZeROPlacement(Placement):
    """A model of whose training each process holds pieces, by DeepSpeed.

    Args:
        module: On its device; its parameters stay the same objects.
        inner: Holds ``module``, and runs functions of it in its own forward.
        optimizers: Of its parameters; they are given the pieces instead.
        device: Of this process.
        stage: 1 cuts the optimizer's state, 2 the gradients as well, 3 the parameters, too.
        settings: Further keys of DeepSpeed's ``zero_optimization``.

    Raises:
        UsageError: DeepSpeed is not installed or does not know a setting, an optimizer needs whole
            tensors, or a parameter to be trained is not float32.
    """

    sharded = True

    def __init__(
        self,
        module: nn.Module,
        inner: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        device: torch.device,
        stage: int,
        settings: Mapping[str, Any],
    ) -> None:
        super().__init__(module, inner, optimizers)
        for optimizer in optimizers:
            check_elementwise(optimizer, f"zero{stage}")
        check_settings(settings)
        self.stage, self._device = stage, device
        self._named = dict(module.named_parameters())
        trained = [p for p in self._named.values() if p.requires_grad and optimizers]
        for name, p in self._named.items():
            if p.requires_grad and optimizers and p.dtype != torch.float32:
                raise UsageError(
                    f"strategy=zero{stage}: {name} is {str(p.dtype).removeprefix('torch.')}; load "
                    "the model in float32 (runtime.precision chooses the type of the passes), or "
                    "use strategy ddp or fsdp"
                )
        self._left = Leftovers(module)
        self._engine: Any = None
        if trained:
            self._engine = start(module, trained, stage, settings)
        elif stage == 3:
            partitioned(module, settings)
        self._left.clean_modules()
        self._zero: Any = None if self._engine is None else self._engine.optimizer
        self._gathering = Gathering(module, blocks(module)) if stage == 3 else None
        if self._gathering is not None:
            self.wrapped = _Gathered(inner, self._gathering)
        self._order = trained[::-1]
        self._came: set[Any] = set()  # had a gradient since the last collect
        self._next = 0  # of the order, in the backward pass that is under way
        self._ready: set[Any] = set()
        self._ending = False
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in trained]
        self._own = self._cut()
        for optimizer in optimizers:
            hand_over(optimizer, self._own)

    # -- a step ------------------------------------------------------------------------------

    def collect(self, optimizer: torch.optim.Optimizer) -> None:
        """Give each piece its part of the gradients, the average over processes.

        Those of another optimizer's keep theirs until it steps.
        """
        del optimizer
        if self._zero is None:
            return
        came = torch.tensor([p in self._came for p in self._order], dtype=torch.uint8)
        came = came.to(self._device)
        dist.all_reduce(came, op=dist.ReduceOp.MAX)
        chosen = [p for p, is_new in zip(self._order, came.tolist(), strict=True) if is_new]
        self._came = set()
        if not chosen:
            return
        if self.stage == 1:
            for p in chosen:
                self._reduce(p)
            self._zero.overlapping_partition_gradients_reduce_epilogue()
        found = self._partitions()
        if self._device.type == "cuda" and any(x.device.type == "cpu" for x in found.values()):
            torch.cuda.synchronize()  # copies to the machine's memory may be under way
        for p in chosen:
            own = self._own[p]
            gradient = found[p] if p in found else own.new_zeros(0)
            if own.grad is None:
                own.grad = gradient
            elif own.grad.data_ptr() != gradient.data_ptr():
                own.grad += gradient

    def publish(self) -> None:
        """Have the model see what was changed in the pieces. Collective."""
        if self._gathering is not None:
            self._gathering.forget()
        if self._zero is None:
            return
        if self.stage < 3:
            self._zero.update_lp_params()
            return
        for mine, model in zip(
            self._zero.fp32_partitioned_groups_flat,
            self._zero.fp16_partitioned_groups_flat,
            strict=True,
        ):
            if mine.data_ptr() != model.data_ptr():
                model.data.copy_(mine.data)

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of the pieces that have none any more."""
        del optimizer
        if self.stage == 3 and self._zero is not None:
            for p in self._order:
                if self._own[p].grad is None:
                    self._buffer(p).zero_()

    def _arrived(self, p: Any) -> None:  # noqa: ANN401 a parameter with DeepSpeed's attributes
        """Take note of a gradient; reduce those whose turn it is."""
        self._came.add(p)
        if self._gathering is not None:
            self._gathering.at_end()
        if self.stage == 1:  # exchanges once, in collect
            return
        if not self._ending:
            self._ending = True
            at_end_of_backward(self._ended)
        self._ready.add(p)
        for q in self._order[self._next :]:
            if q.requires_grad:
                if q not in self._ready:
                    break
                self._reduce(q)
            self._next += 1

    def _ended(self) -> None:
        """Reduce what is left of a backward pass, and with it those that had no gradient."""
        for p in self._order[self._next :]:
            if p.requires_grad:
                self._reduce(p)
        self._zero.overlapping_partition_gradients_reduce_epilogue()
        self._next, self._ready, self._ending = 0, set(), False

    @torch.no_grad()
    def _reduce(self, p: Any) -> None:  # noqa: ANN401
        if p.grad is None:
            data = p.data
            if self.stage == 3:
                p.data = data.new_empty(()).expand(p.ds_shape)  # a gradient has to have its shape
            p.grad = torch.zeros(p.shape, dtype=p.dtype, device=p.device)
            p.data = data
        if self.stage == 3:
            self._zero.reduce_independent_p_g_buckets_and_remove_grads(p)
        else:
            self._zero.setup_buckets()
            self._zero.reduce_independent_p_g_buckets_and_remove_grads(p, 0)

    def _partitions(self) -> dict[Any, Tensor]:
        """Return the gradients that lie in this process's partition, each in its piece's shape."""
        zero = self._zero
        if self.stage == 3:
            return {p: self._buffer(p)[: self._own[p].numel()] for p in self._order}
        inside = zero.params_in_partition[0]
        if zero.cpu_offload:
            zero._wait_for_offload_copies()
            whole = [zero.accumulated_grads_in_cpu.get(zero.get_param_id(p)) for p in inside]
            zero.accumulated_grads_in_cpu, zero.micro_step_id = {}, -1
        else:
            whole = zero.all_grad_tensors[0]
            zero.all_grad_tensors[0] = None
        found = {}
        for p, gradient in zip(inside, whole, strict=True):
            if gradient is not None:
                own: Any = self._own[p]
                begin = own.monro_whole.begin
                found[p] = gradient.reshape(-1)[begin : begin + own.numel()]
        return found

    def _buffer(self, p: Any) -> Tensor:  # noqa: ANN401
        buffers = self._zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
        buffer: Tensor = buffers[p.ds_id]
        return buffer

    # -- what it holds -----------------------------------------------------------------------

    def _cut(self) -> dict[nn.Parameter, nn.Parameter]:
        """Return the piece of each parameter; a frozen one of stages 1 and 2 stays whole."""
        if self.stage == 3:
            trained = set(self._order)
            return {p: self._part(p, p in trained) for p in self._named.values()}
        own: dict[nn.Parameter, nn.Parameter] = {p: p for p in self._named.values()}
        if self._zero is None:
            return own
        zero, world, rank = self._zero, dist.get_world_size(), dist.get_rank()
        size = int(zero.partition_size[0])
        master, model = zero.single_partition_of_fp32_groups[0], zero.bit16_groups_flat[0]
        if master.device == model.device:  # one copy of it is enough
            master.data = model.data[rank * size : (rank + 1) * size]
        places = zip(
            zero.round_robin_bit16_groups[0], zero.round_robin_bit16_offsets[0], strict=True
        )
        for p, offset in places:
            cuts = [min(max(i * size - offset, 0), p.numel()) for i in range(world + 1)]
            lengths = tuple(b - a for a, b in pairwise(cuts))
            start = offset + cuts[rank] - rank * size
            data = master.data.narrow(0, start if lengths[rank] else 0, lengths[rank])
            own[p] = as_piece(data, Whole(cuts[rank], p.shape, lengths))
        return own

    def _part(self, p: Any, trained: bool) -> nn.Parameter:  # noqa: ANN401
        """Return this process's piece of a parameter of stage 3."""
        zero, world, rank = self._zero, dist.get_world_size(), dist.get_rank()
        data, size = p.ds_tensor.data, p.ds_tensor.ds_numel
        if trained:
            group, offset, _ = zero.grad_position[zero.get_param_id(p)]
            master = zero.fp32_partitioned_groups_flat[group]
            model = zero.fp16_partitioned_groups_flat[group]
            if master.device == model.device:  # one copy of it is enough
                master.data = model.data
            data = master.data[offset : offset + size]
        cuts = [min(i * size, p.ds_numel) for i in range(world + 1)]
        lengths = tuple(b - a for a, b in pairwise(cuts))
        return as_piece(data[: lengths[rank]], Whole(cuts[rank], p.ds_shape, lengths))

    def pieces(self) -> dict[str, Piece]:
        """Return this process's piece of each parameter, by its name in the model."""
        found = {}
        for name, p in self._named.items():
            own: Any = self._own[p]
            whole: Whole | None = getattr(own, "monro_whole", None)
            shape = tuple(p.shape if whole is None else whole.shape)
            begin, alone = (0, False) if whole is None else (whole.begin, True)
            found[name] = Piece(own.detach(), begin, shape, alone)
        return found

    def names(self) -> dict[nn.Parameter, str]:
        """Return the name in the model of each piece."""
        return {self._own[p]: name for name, p in self._named.items()}

    def parameter_bytes(self) -> int:
        """Return the bytes of the model's parameters that this process holds between steps."""
        if self.stage < 3:
            return super().parameter_bytes()
        parts: list[Any] = list(self._named.values())
        return sum(p.ds_tensor.numel() * p.ds_tensor.element_size() for p in parts)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Have whole parameters in the model, and no hooks."""
        with nullcontext() if self._gathering is None else self._gathering.whole():
            yield

    @torch.no_grad()
    def release(self) -> None:
        """Make the model whole and ordinary again, for good. Collective."""
        self.released = True
        with self.gathered():
            whole = {p: p.data.clone() for p in self._own if self._own[p] is not p}
        if self._gathering is not None:
            self._gathering.unhook()
        for hook in self._hooks:
            hook.remove()
        if self._engine is not None:
            self._engine.destroy()
        self._left.clean_parameters()
        for p, data in whole.items():
            p.data, p.grad = data, None
        self._engine = self._zero = self._gathering = None


class _Gathered(nn.Module):
    """Runs ``inner`` with what belongs to no block gathered."""

    def __init__(self, inner: nn.Module, gathering: Gathering) -> None:
        super().__init__()
        self.inner, self._gathering = inner, gathering

    def forward(self, *args: Any) -> Any:  # noqa: ANN401 whatever inner takes and returns
        return self._gathering.run(lambda: self.inner(*args))
