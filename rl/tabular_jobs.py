"""Runs of tabular methods: the learning curve against the exact optimum, and the table itself."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from launch.config import resumable
from launch.errors import UsageError
from launch.folder import atomic_write
from launch.runtime import Runtime, RuntimeConfig
from rl.blackjack import observed_states
from rl.evaluation import plot_curves
from rl.mdp import TabularMDP, as_mdp
from rl.planning import Solution, policy_evaluation, value_iteration
from rl.step_sizes import Constant, Power
from rl.tabular_graph import check_ends_under_any_policy
from rl.tabular_schedules import Linear
from rl.tabular_tasks import ControlResult
from rl.temporal_difference import q_learning
from rl.value_maps import GRID_ARROWS, plot_values

__all__ = ["Grid", "Plan", "TabularControl"]

Rate: TypeAlias = float | Power | Constant | Linear
"""A number, or a schedule that the compiled loop knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """How the states of an environment lie on a grid, for the report's map."""

    rows: int
    columns: int
    arrows: str = GRID_ARROWS
    """A sign for each action."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TabularControl:
    """A table learned by several seeds, its greedy policy held against the exact optimum.

    Every point of the curve is a run that began anew with the same seed and stopped there.
    """

    leaves_run: ClassVar[bool] = True
    env: str = ""
    """A gymnasium id whose model is at hand: toy text, Blackjack."""
    learn: Callable[..., ControlResult] = q_learning
    """The method, a function of ``rl.temporal_difference`` or ``rl.monte_carlo``."""
    discount: float = 0.99
    steps: int | None = None
    """Environment steps of each seed; or give episodes."""
    episodes: int | None = None
    step_size: Rate = 0.1
    epsilon: Rate = field(default_factory=lambda: Linear(1.0, 0.1, 100_000))
    max_episode_steps: int | None = None
    """A time limit for environments that have none."""
    seeds: int = 8
    """Learners; the table that is left is their mean."""
    points: int = 20
    """Of the learning curve."""
    grid: Grid | None = None
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=lambda: RuntimeConfig(threads=1))

    def __post_init__(self) -> None:
        for name in ("seeds", "points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        if (self.steps is None) == (self.episodes is None):
            raise ValueError(
                f"steps={self.steps} and episodes={self.episodes}: give exactly one of them"
            )
        if self.amount < self.points:
            raise ValueError(
                f"{self.unit}={self.amount} for points={self.points}: each point of the curve "
                f"needs at least one of the {self.unit}"
            )

    @property
    def unit(self) -> str:
        """What is counted: steps or episodes."""
        return "steps" if self.episodes is None else "episodes"

    @property
    def amount(self) -> int:
        """How many of them."""
        return (self.steps if self.episodes is None else self.episodes) or 0

    def check(self) -> None:
        """Raise UsageError if the environment has no model, or a setting does not fit it."""
        mdp = self._model()
        _check_grid(self.grid, mdp, self.env)
        self._learn(1, 0)
        if self.discount == 1:
            try:
                check_ends_under_any_policy(mdp)
            except ValueError:
                raise UsageError(
                    f"discount=1, but in {self.env} some policies never end an episode, and should "
                    "one be learned, its exact value has no sum: use a discount below 1"
                ) from None

    def run(self, run: Runtime) -> None:
        """Learn, compare with the optimum, and leave the table in the run folder."""
        mdp = self._model()
        best = value_iteration(mdp, self.discount)
        optimum = float(mdp.start @ best.values)
        curve = ExactCurve(self.seeds, self.points)
        found: list[ControlResult] = []
        for point in run.steps(
            self.points, state={"curve": curve}, headline=("value", "optimum", "episode/return")
        ):
            amount = self.amount * point // self.points
            found = [self._learn(amount, seed) for seed in self._seeds()]
            exact = [self._value(mdp, result.policy) for result in found]
            ends = np.concatenate([result.episode_returns[-100:] for result in found])
            run.log(
                point,
                {
                    self.unit: amount,
                    "value": sum(exact) / len(exact),
                    "value/worst": min(exact),
                    "optimum": optimum,
                    "episode/return": float(ends.mean()) if len(ends) else 0.0,
                },
            )
            curve.values[:, point - 1] = exact
        if not found:  # resumed behind the last point
            found = [self._learn(self.amount, seed) for seed in self._seeds()]
        self._leave(mdp, best, found, curve.values, run)

    def _model(self) -> TabularMDP:
        if not self.env:
            raise UsageError("no environment is given: add --env ID, such as --env FrozenLake-v1")
        return as_mdp(self.env)

    def _seeds(self) -> range:
        return range(self.seed * self.seeds, (self.seed + 1) * self.seeds)

    def _learn(self, amount: int, seed: int) -> ControlResult:
        return self.learn(
            self.env,
            discount=self.discount,
            step_size=self.step_size,
            epsilon=self.epsilon,
            seed=seed,
            max_episode_steps=self.max_episode_steps,
            **{self.unit: amount},
        )

    def _value(self, mdp: TabularMDP, policy: NDArray[np.int64]) -> float:
        """Return what a greedy policy earns from the start, exactly."""
        return float(mdp.start @ policy_evaluation(mdp, _padded(policy, mdp), self.discount).values)

    def _leave(
        self,
        mdp: TabularMDP,
        best: Solution,
        found: Sequence[ControlResult],
        curve: NDArray[np.float64],
        run: Runtime,
    ) -> None:
        table = np.mean([result.action_values for result in found], axis=0)
        policy = table.argmax(axis=1)
        mean, optimum = self._value(mdp, policy), float(mdp.start @ best.values)
        run.print(f"Greedy policy of the mean table: {mean:.6g}; the optimum is {optimum:.6g}")
        if not run.is_main or run.output is None:
            return
        _save_table(run, {"action_values": table, "policy": policy})
        points = [self.amount * (k + 1) // self.points for k in range(self.points)]
        drawn = plot_curves({self.env: (points, curve)}, optimum=optimum)
        run.figure("Exact value of the greedy policy", drawn)
        rows = [{"policy": "of the mean table", "value": mean}]
        rows += [{"policy": "optimal", "value": optimum}]
        run.table("Values at the start, exact", rows)
        if self.grid is not None:
            _show_map(run, "Learned values", self.grid, table.max(axis=1), policy)
            _show_map(run, "Optimal values", self.grid, best.values, _actions(best))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Value iteration on a model, with the map of values and the optimal policy."""

    leaves_run: ClassVar[bool] = True
    model: Callable[[], TabularMDP]
    """A function that makes the model."""
    grid: Grid
    discount: float = 0.9
    tolerance: float = 1e-8
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=lambda: RuntimeConfig(threads=1))

    def check(self) -> None:
        """Raise ValueError if the model, the discount or the tolerance is not valid."""
        if not 0 <= self.discount <= 1:
            raise UsageError(f"discount={self.discount}: it lies between 0 and 1")
        if not 0 < self.tolerance < math.inf:
            raise UsageError(f"tolerance={self.tolerance}: values settle within a number above 0")
        mdp = self.model()
        _check_grid(self.grid, mdp, "the model")
        value_iteration(mdp, self.discount, tolerance=sys.float_info.max)  # one sweep

    def run(self, run: Runtime) -> None:
        """Solve the model, log every sweep, and show the solution."""
        run.restore({})
        found = value_iteration(self.model(), self.discount, tolerance=self.tolerance)
        for sweep, residual in enumerate(found.residuals, start=1):
            run.log(sweep, {"residual": float(residual)})
        if not run.is_main or run.output is None:
            return
        policy = _actions(found)
        tables = {"values": found.values, "action_values": found.action_values}
        _save_table(run, {**tables, "policy": policy})
        _show_map(run, "Optimal values and policy", self.grid, found.values, policy)


class ExactCurve:
    """The exact value of each seed's greedy policy at each point; part of a checkpoint."""

    def __init__(self, seeds: int, points: int) -> None:
        self.values = np.zeros((seeds, points))

    def state_dict(self) -> dict[str, Any]:
        """Return the values so far."""
        return {"values": torch.from_numpy(self.values.copy())}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take what ``state_dict`` returned."""
        self.values[:, :] = state_dict["values"].numpy()


def _check_grid(grid: Grid | None, mdp: TabularMDP, name: str) -> None:
    """Raise UsageError where a map has not a cell for each state, and an arrow for each action."""
    if grid is not None and grid.rows * grid.columns != mdp.states:
        raise UsageError(
            f"a grid of {grid.rows} x {grid.columns} cells does not fit the {mdp.states} states of "
            f"{name}: set grid.rows and grid.columns, or --grid null for no map"
        )
    if grid is not None and len(grid.arrows) < mdp.actions:
        raise UsageError(
            f"grid.arrows={grid.arrows!r}, but {name} has {mdp.actions} actions: give a sign for "
            "each of them"
        )


def _actions(solution: Solution) -> NDArray[np.int64]:
    return np.asarray(solution.policy, np.int64)


def _padded(policy: NDArray[np.int64], mdp: TabularMDP) -> NDArray[np.int64]:
    """Give a model's extra states the action of the state that looks the same.

    Blackjack's exact model has ten more, its natural starts: there a learner acts as with 21.
    """
    return policy if len(policy) == mdp.states else policy[observed_states()]


def _save_table(run: Runtime, tables: Mapping[str, NDArray[Any]]) -> None:
    from safetensors.numpy import save

    if run.output is not None:
        atomic_write(
            run.output / "table.safetensors", save({k: v.copy() for k, v in tables.items()})
        )


def _show_map(
    run: Runtime,
    name: str,
    grid: Grid,
    values: NDArray[np.float64],
    policy: NDArray[np.int64],
) -> None:
    shape = (grid.rows, grid.columns)
    run.figure(name, plot_values(shape, values, policy, arrows=grid.arrows))
