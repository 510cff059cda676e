"""Batches: dataclasses of tensors whose axes are declared and checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self, runtime_checkable

import torch

__all__ = ["Splittable", "TensorBatch", "shaped"]


@runtime_checkable
class Splittable(Protocol):
    """What a runtime can hand out in micro-batches: it has a length and knows its parts."""

    def __len__(self) -> int:
        """Return the number of units (rows, pairs, groups) that may be split."""
        ...

    def split(self, size: int) -> Iterator[Self]:
        """Yield parts of at most ``size`` units, in order; nothing for an empty batch."""
        ...

    def empty(self) -> Self:
        """Return the same batch with no units in it."""
        ...


def shaped(axes: str, *, default: Any = ...) -> Any:  # noqa: ANN401 like dataclasses.field
    """Declare the axes of a batch's field.

    Args:
        axes: Letters separated by spaces; the first is the axis along which the batch is split.
        default: ``None`` makes the field optional; without it the field must be given.
    """
    metadata = {"axes": axes.split()}
    if default is ...:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TensorBatch:
    """Base of every batch: equal letters must have equal sizes across all fields.

    A batch is split along its first axis, in rows. A batch whose unit is larger (pairs, groups)
    overrides ``__len__`` and ``rows``.

    >>> from torch import Tensor
    >>> @dataclass(frozen=True, kw_only=True, slots=True, eq=False)
    ... class Points(TensorBatch):
    ...     x: Tensor = shaped("B D")
    ...     label: Tensor = shaped("B")
    >>> points = Points(x=torch.zeros(5, 2), label=torch.arange(5))
    >>> [part.label.tolist() for part in points.split(2)]
    [[0, 1], [2, 3], [4]]
    >>> Points(x=torch.zeros(5, 2), label=torch.arange(4))
    Traceback (most recent call last):
        ...
    ValueError: Points.label has B=4, but x has B=5: every field of a batch needs the same B
    """

    def __post_init__(self) -> None:
        seen: dict[str, tuple[int, str]] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None:  # an optional field, such as the reference's log-probs
                continue
            axes, shape = f.metadata["axes"], tuple(value.shape)
            where = f"{type(self).__name__}.{f.name}"
            if len(axes) != len(shape):
                raise ValueError(f"{where} has shape {shape}, expected axes ({', '.join(axes)})")
            for axis, size in zip(axes, shape, strict=True):
                first, name = seen.setdefault(axis, (size, f.name))
                if size != first:
                    raise ValueError(
                        f"{where} has {axis}={size}, but {name} has {axis}={first}: "
                        f"every field of a batch needs the same {axis}"
                    )

    def __len__(self) -> int:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                return len(value)
        return 0

    def rows(self, start: int, stop: int) -> Self:
        """Return the units from ``start`` to ``stop`` (exclusive) as a batch, without a copy."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[start:stop] for k, v in values.items() if v is not None})

    def take(self, index: torch.Tensor) -> Self:
        """Return the rows at ``index``, in its order, as a copy.

        A batch whose unit is larger (pairs, groups) cannot be taken from in this way.

        Args:
            index: ``(N,)`` int64, or bool for every row.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[index] for k, v in values.items() if v is not None})

    def split(self, size: int) -> Iterator[Self]:
        """Yield parts of at most ``size`` units, in order; nothing for an empty batch."""
        if size < 1:
            raise ValueError(f"got a micro-batch of {size} rows: it needs at least one")
        if 0 < len(self) <= size:
            yield self
            return
        for start in range(0, len(self), size):
            yield self.rows(start, start + size)

    def empty(self) -> Self:
        """Return the same batch with no units in it."""
        return self.rows(0, 0)

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on a device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in values.items() if v is not None})
