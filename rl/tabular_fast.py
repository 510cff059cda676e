"""The compiled loop: the loops of tabular learning, compiled over an environment's model.

`compiled` compiles a loop together with all it calls; `Model` takes the environment's place in it.
The loop's source stays the readable one. A model draws from its generator what the environment of
gymnasium would draw from ``env.np_random``: one uniform number a reset and one a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from rl.mdp import TabularMDP
from rl.tabular_schedules import scheduled, table_schedule
from rl.tabular_updates import Floats, Ints, shared
from rl.tabular_worlds import begin, reset, step

__all__ = ["Model", "compiled", "model_world"]

R = TypeVar("R")
UNLIMITED = 2**62


class Model(NamedTuple):
    """An environment's model as arrays to sample from, with the state of its running episode.

    A learner may see less than the model knows (Blackjack's): ``hidden`` is the model's state,
    ``observed[hidden]`` the learner's.
    """

    states: int
    """S, that the learner tells apart."""
    actions: int
    limit: int
    """Steps after which an episode is truncated."""
    start: Floats
    """Running sum of the distribution of the first state."""
    offsets: Ints
    cumulative: Floats
    next_states: Ints
    next_observed: Ints
    """``observed[next_states]``."""
    rewards: Floats
    terminated: NDArray[np.bool_]
    observed: Ints
    hidden: Ints
    """``(1,)``."""
    earned: Floats
    """``(1,)``, the running episode's sum of rewards."""
    length: Ints
    """``(1,)``, its steps so far."""
    generator: np.random.Generator

    def reset(self) -> int:
        """Draw a first state."""
        return _reset(self)

    def begin(self, state: int) -> int:
        """Begin an episode in a state of the model and return what is seen of it."""
        return _begin(self, state)

    def step(self, action: int) -> tuple[int, float, bool, bool]:
        """Draw an outcome: next state, reward, terminated, truncated."""
        return _step(self, action)


def model_world(
    mdp: TabularMDP, limit: int | None, generator: np.random.Generator, observed: Ints
) -> Model:
    """Return the world that samples from ``mdp``; ``limit=None`` never truncates."""
    outcomes = mdp.outcomes
    return Model(
        states=int(observed.max()) + 1,
        actions=mdp.actions,
        limit=UNLIMITED if limit is None else limit,
        start=np.cumsum(mdp.start),
        offsets=outcomes.offsets,
        cumulative=outcomes.cumulative,
        next_states=outcomes.next_states,
        next_observed=observed[outcomes.next_states],
        rewards=outcomes.rewards,
        terminated=outcomes.terminated,
        observed=observed,
        hidden=np.zeros(1, np.int64),
        earned=np.zeros(1),
        length=np.zeros(1, np.int64),
        generator=generator,
    )


@shared
def _reset(world: Model) -> int:
    uniform, low, high = world.generator.random(), 0, len(world.start) - 1
    while low < high:  # the first entry above the number
        middle = (low + high) // 2
        if world.start[middle] > uniform:
            high = middle
        else:
            low = middle + 1
    return _begin(world, low)


@shared
def _begin(world: Model, state: int) -> int:
    world.hidden[0] = state
    world.earned[0] = 0.0
    world.length[0] = 0
    return world.observed[state]


@shared
def _step(world: Model, action: int) -> tuple[int, float, bool, bool]:
    pair = world.hidden[0] * world.actions + action
    k, last, uniform = world.offsets[pair], world.offsets[pair + 1] - 1, world.generator.random()
    while k < last and world.cumulative[k] <= uniform:
        k += 1
    world.hidden[0] = world.next_states[k]
    world.earned[0] += world.rewards[k]
    world.length[0] += 1
    truncated = world.length[0] >= world.limit
    return world.next_observed[k], world.rewards[k], world.terminated[k], truncated


# What the loops call of a world or a schedule, as the compiler is to read it.
overload(reset, strict=False, jit_options={"forceinline": True})(lambda world: _reset)
overload(begin, strict=False, jit_options={"forceinline": True})(lambda world, state: _begin)
overload(step, strict=False, jit_options={"forceinline": True})(lambda world, action: _step)
overload(scheduled, strict=False, jit_options={"forceinline": True})(
    lambda schedule, step, visits: table_schedule
)


def _borrowed(_: object, arguments: Any) -> tuple[object, object]:  # noqa: ANN401 (numba's type)
    """Return a tuple without its arrays' owners; they must be kept alive by someone else.

    Each time a tuple is handed on, numba counts a reference more to every array in it and then one
    less. A task holds some twenty, and so counted, a step takes three times as long.
    """

    def generate(context: Any, builder: Any, _: object, values: list[Any]) -> Any:  # noqa: ANN401
        return _without_owners(context, builder, arguments, values[0])

    return arguments(arguments), generate


borrowed = intrinsic(_borrowed)


def _without_owners(context: Any, builder: Any, kind: Any, value: Any) -> Any:  # noqa: ANN401
    if isinstance(kind, numba.types.BaseTuple):
        members = [
            _without_owners(context, builder, member, builder.extract_value(value, k))
            for k, member in enumerate(kind)
        ]
        return context.make_tuple(builder, kind, members)
    if isinstance(kind, (numba.types.Array, numba.types.NumPyRandomGeneratorType)):
        view = cgutils.create_struct_proxy(kind)(context, builder, value)
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()
    return value


@cache
def compiled(loop: Callable[..., R]) -> Callable[..., R]:
    """Return the compiled twin of a loop; its machine code is kept on disk for the next process.

    Its arguments may be numbers, arrays, generators and named tuples of these. It is compiled at
    the first call, which takes seconds.
    """
    shared(loop)
    sources = _digest(loop.__code__.co_filename)

    def entry(*arguments: object) -> R:
        _ = sources  # enters the key of the cache: numba itself watches this file alone
        return loop(*borrowed(arguments))  # the caller, Python, owns them until it returns

    try:
        return numba.njit(cache=True)(entry)
    except RuntimeError:  # no folder that could be written to
        return numba.njit(entry)


def _digest(loop_file: str) -> str:
    """Return a digest of all the source that may be compiled into a loop."""
    digest = hashlib.sha256(Path(loop_file).read_bytes())
    for path in sorted(Path(__file__).parent.glob("tabular_*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
