"""Parameters that are in pieces between passes, and whole while a pass needs them (ZeRO-3).

Each block of a model is gathered when its forward begins and dropped when it ends, and again in the
backward pass. What belongs to no block is gathered when a pass begins; it stays until the backward
pass has ended, or the forward pass where no gradient is asked for.

DeepSpeed's own hooks sit around every leaf module instead, so that a function which reads a weight
directly finds it empty, and they follow a recorded order of modules from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from launch.placement import mark, unmark

__all__ = ["Gathering", "at_end_of_backward"]


def at_end_of_backward(function: Callable[[], None]) -> None:
    """Have ``function`` called once when the backward pass that is under way has ended."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(function)


class Gathering:
    """Who needs which parameters of a model whole.

    Args:
        module: Its parameters were made DeepSpeed's, by ``deepspeed.zero.Init``.
        parts: The blocks of it, inner ones first.
    """

    def __init__(self, module: nn.Module, parts: Sequence[nn.Module]) -> None:
        self._users: dict[Any, int] = dict.fromkeys(module.parameters(), 0)
        called = [part for part in parts if type(part).forward is not nn.Module.forward]
        self._parts = [(part, _own(part, called)) for part in called]
        self._rest = _own(module, called)
        self._passes: dict[nn.Module, list[_Pass | None]] = {part: [] for part in called}
        self._handles: list[Any] = []
        self._depth = 0
        self._ending = False
        self._hook()

    # -- passes ------------------------------------------------------------------------------

    def run(self, function: Callable[[], Any]) -> Any:  # noqa: ANN401 whatever it returns
        """Return ``function()``, for which what belongs to no block is whole.

        It stays so until the backward pass through what is returned has ended.
        """
        self.fetch(self._rest)
        held = False
        try:
            output = function()
            held = torch.is_grad_enabled() and _Pass(self, self._rest).watch(output)
        finally:
            if not held:
                self.drop(self._rest)
        return output

    def fetch(self, parameters: Sequence[Any]) -> None:
        """Have parameters whole until as many calls of ``drop``. Collective."""
        absent = [p for p in parameters if self._users[p] == 0]
        for p in parameters:
            self._users[p] += 1
        if absent:
            absent[0].all_gather_coalesced(absent).wait()

    def drop(self, parameters: Sequence[Any]) -> None:
        """Undo one call of ``fetch``; those that no one needs are freed."""
        for p in parameters:
            if self._users[p] > 0:  # otherwise all were freed in between
                self._users[p] -= 1
                if self._users[p] == 0:
                    p.partition()

    def forget(self) -> None:
        """Free all parameters that are still whole."""
        self._ending = False
        if self._depth == 0:
            for p, users in self._users.items():
                if users > 0:
                    self._users[p] = 0
                    p.partition()

    def at_end(self) -> None:
        """Free all when the backward pass that is under way has ended.

        One whose gradients are differentiated again (``create_graph``) needs them afterwards.
        """
        if not self._ending and not torch.is_grad_enabled():
            self._ending = True
            at_end_of_backward(self.forget)

    # -- outside passes ----------------------------------------------------------------------

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Have all parameters whole, and no hooks, inside the block. Collective."""
        everything = list(self._users)
        if self._depth == 0:
            self.unhook()
            self.fetch(everything)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.drop(everything)
                self._hook()

    def unhook(self) -> None:
        """Take the hooks from the blocks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for part, _ in self._parts:
            unmark(part)

    def _hook(self) -> None:
        for part, own in self._parts:
            before, after = partial(self._before, own), partial(self._after, own)
            self._handles += [
                part.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
                part.register_forward_hook(after, always_call=True),
            ]
            mark(part, type(part))

    def _before(
        self,
        own: Sequence[Any],
        part: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.fetch(own)
        if not torch.is_grad_enabled():
            self._passes[part].append(None)
            return args, kwargs
        passed = _Pass(self, own)
        self._passes[part].append(passed)
        leaves, form = tree_flatten((args, kwargs))
        places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]
        if places:
            seen = _Ended.apply(passed.end, *[leaves[i] for i in places])  # type: ignore[no-untyped-call]
            for i, x in zip(places, seen, strict=True):
                leaves[i] = x
        args, kwargs = tree_unflatten(leaves, form)
        return args, kwargs

    def _after(self, own: Sequence[Any], part: nn.Module, args: object, output: object) -> None:
        del args
        passed = self._passes[part].pop()
        if passed is not None:
            passed.watch(output)
        self.drop(own)


class _Pass:
    """One call of a block: its parameters are whole from its output's gradient to its input's."""

    def __init__(self, gathering: Gathering, own: Sequence[Any]) -> None:
        self.gathering, self.own = gathering, own
        self.open = False

    def watch(self, output: object) -> bool:
        """Begin when a gradient of ``output`` arrives; False if none ever can."""
        found = [x for x in _tensors(output) if x.grad_fn is not None]
        for x in found:
            x.register_hook(self.begin)
        return bool(found)

    def begin(self, gradient: Tensor) -> None:
        del gradient
        if not self.open:
            self.open = True
            self.gathering.fetch(self.own)
        if not torch.is_grad_enabled():
            at_end_of_backward(self.end)  # nothing that goes into the block may have a gradient
        self.gathering.at_end()

    def end(self) -> None:
        if self.open:
            self.open = False
            self.gathering.drop(self.own)


class _Ended(torch.autograd.Function):
    """The identity; says when the gradient has come through it."""

    @staticmethod
    def forward(ctx: Any, end: Callable[[], None], *xs: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401 as autograd has it
        ctx.end = end
        return xs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 as autograd has it
        if not torch.is_grad_enabled():  # otherwise the gradient's own backward needs them again
            ctx.end()
        return None, *gradients


def _own(module: nn.Module, parts: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of a module that lie in none of the parts inside it."""
    found: dict[nn.Parameter, None] = {}
    waiting = [module]
    while waiting:
        part = waiting.pop()
        found.update(dict.fromkeys(part.parameters(recurse=False)))
        waiting += [x for x in part.children() if not any(x is other for other in parts)]
    return list(found)


def _tensors(x: object) -> Iterator[Tensor]:
    for leaf in tree_leaves(x):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            for f in fields(leaf):
                yield from _tensors(getattr(leaf, f.name))
