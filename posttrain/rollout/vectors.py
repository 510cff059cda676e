"""Eight float32 numbers at once, for compiled loops whose rows are too short for the compiler.

LLVM turns a long loop into vector instructions by itself. A row of 24 features it takes number by
number, or in so many steps that the checks before it cost more than the row. Here the vector is
spelled out; LLVM maps it to whatever the processor has (AVX, two NEON registers).

Arrays are one-dimensional and contiguous; indices are trusted and do not count from the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

__all__ = [
    "LANES",
    "Vector",
    "add",
    "add_product",
    "fetch",
    "greater",
    "greatest",
    "load",
    "spread",
    "store",
    "total",
    "zeros",
]

LANES = 8
"""Numbers in a vector."""
Floats: TypeAlias = NDArray[np.float32]
Untyped: TypeAlias = Any  # numba's and llvmlite's objects
Typed: TypeAlias = tuple[Untyped, Callable[..., Untyped]]  # a signature and what writes its code

_FLOAT = ir.FloatType()
_EIGHT = ir.VectorType(_FLOAT, LANES)


class Vector(types.Type):  # type: ignore[misc]  # numba's has no types
    """The type of eight float32 numbers."""


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]  # numba's has no types
    def __init__(self, manager: Untyped, kind: Untyped) -> None:
        super().__init__(manager, kind, _EIGHT)


_vector = Vector(name=f"float32x{LANES}")


def _address(context: Untyped, builder: Untyped, kind: Untyped, x: Untyped, i: Untyped) -> Untyped:
    return builder.gep(context.make_array(kind)(context, builder, x).data, [i])


@intrinsic  # type: ignore[untyped-decorator]  # numba's has no types
def zeros(typing: Untyped) -> Typed:
    """Return eight zeros."""

    def code(context: Untyped, builder: Untyped, signature: Untyped, given: Untyped) -> Untyped:
        return ir.Constant(_EIGHT, [0.0] * LANES)

    return _vector(), code


@intrinsic  # type: ignore[untyped-decorator]  # numba's has no types
def load(typing: Untyped, x: Floats, i: int) -> Typed:
    """Return ``x[i : i + 8]``."""

    def code(context: Untyped, builder: Untyped, signature: Untyped, given: Untyped) -> Untyped:
        address = _address(context, builder, signature.args[0], *given)
        return builder.load(builder.bitcast(address, _EIGHT.as_pointer()), align=4)

    return _vector(x, types.intp), code


@intrinsic  # type: ignore[untyped-decorator]  # numba's has no types
def store(typing: Untyped, x: Floats, i: int, vector: Vector) -> Typed:
    """Write ``vector`` to ``x[i : i + 8]``."""

    def code(context: Untyped, builder: Untyped, signature: Untyped, given: Untyped) -> Untyped:
        address = _address(context, builder, signature.args[0], *given[:2])
        builder.store(given[2], builder.bitcast(address, _EIGHT.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(x, types.intp, _vector), code


@intrinsic  # type: ignore[untyped-decorator]  # numba's has no types
def fetch(typing: Untyped, x: Floats, i: int) -> Typed:
    """Ask for the line of ``x[i]`` in the second cache and do not wait; it may lie outside."""

    def code(context: Untyped, builder: Untyped, signature: Untyped, given: Untyped) -> Untyped:
        address = builder.bitcast(
            _address(context, builder, signature.args[0], *given), ir.IntType(8).as_pointer()
        )
        name, word = "llvm.prefetch.p0", ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, word, word, word])
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(function, [address, word(0), word(2), word(1)])
        return context.get_dummy_value()

    return types.void(x, types.intp), code


@intrinsic  # type: ignore[untyped-decorator]  # numba's has no types
def spread(typing: Untyped, x: Floats, i: int) -> Typed:
    """Return ``x[i]`` eight times."""

    def code(context: Untyped, builder: Untyped, signature: Untyped, given: Untyped) -> Untyped:
        number = builder.load(_address(context, builder, signature.args[0], *given))
        first, nothing = ir.Constant(ir.IntType(32), 0), ir.Constant(_EIGHT, ir.Undefined)
        one = builder.insert_element(nothing, number, first)
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(one, nothing, lanes)

    return _vector(x, types.intp), code


@intrinsic  # type: ignore[untyped-decorator]  # numba's has no types
def add(typing: Untyped, x: Vector, y: Vector) -> Typed:
    """Return ``x + y``."""

    def code(context: Untyped, builder: Untyped, signature: Untyped, given: Untyped) -> Untyped:
        return builder.fadd(*given)

    return _vector(_vector, _vector), code


@intrinsic  # type: ignore[untyped-decorator]  # numba's has no types
def add_product(typing: Untyped, x: Vector, y: Vector, z: Vector) -> Typed:
    """Return ``x + y * z``, rounded once where the processor can."""

    def code(context: Untyped, builder: Untyped, signature: Untyped, given: Untyped) -> Untyped:
        x, y, z = given
        return builder.fadd(x, builder.fmul(y, z, flags=["contract"]), flags=["contract"])

    return _vector(_vector, _vector, _vector), code


@intrinsic  # type: ignore[untyped-decorator]  # numba's has no types
def greater(typing: Untyped, x: Vector, y: Vector) -> Typed:
    """Return the greater of each two numbers, neither of them NaN."""

    def code(context: Untyped, builder: Untyped, signature: Untyped, given: Untyped) -> Untyped:
        return builder.select(builder.fcmp_ordered(">", *given), *given)

    return _vector(_vector, _vector), code


@intrinsic  # type: ignore[untyped-decorator]  # numba's has no types
def greatest(typing: Untyped, x: Vector) -> Typed:
    """Return the greatest of the eight numbers, none of them NaN."""

    def code(context: Untyped, builder: Untyped, signature: Untyped, given: Untyped) -> Untyped:
        name = f"llvm.vector.reduce.fmax.v{LANES}f32"
        kind = ir.FunctionType(_FLOAT, [_EIGHT])
        reduce = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(reduce, [given[0]], fastmath=["nnan"])

    return types.float32(_vector), code


@intrinsic  # type: ignore[untyped-decorator]  # numba's has no types
def total(typing: Untyped, x: Vector) -> Typed:
    """Return the sum of the eight numbers."""

    def code(context: Untyped, builder: Untyped, signature: Untyped, given: Untyped) -> Untyped:
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        kind = ir.FunctionType(_FLOAT, [_FLOAT, _EIGHT])
        reduce = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(reduce, [ir.Constant(_FLOAT, -0.0), given[0]], fastmath=["reassoc"])

    return types.float32(_vector), code
