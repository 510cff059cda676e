"""What a run of an agent shows: learning curves over seeds, and the best policy at work."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from launch.runtime import Runtime
from rl.evaluation import bootstrap_interval, iqm, plot_curves, record_gif
from rl.policies import Policy

if TYPE_CHECKING:
    from rl.agent import AgentConfig

__all__ = ["Curve", "read_curve", "show_policy", "show_scores"]

Curve = tuple[np.ndarray, np.ndarray]
"""Env steps and mean greedy returns, one for each evaluation."""


def read_curve(run: Runtime) -> Curve:
    """Return the evaluations of a run, from its records; empty without a run folder."""
    path = None if run.output is None else run.output / "metrics.jsonl"
    if path is None or not path.exists():
        return np.zeros(0), np.zeros(0)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    seen = [(r["env_steps"], r["eval/return"]) for r in records if "eval/return" in r]
    return np.array([s for s, _ in seen], float), np.array([score for _, score in seen], float)


def show_scores(name: str, curves: Sequence[Curve], run: Runtime) -> None:
    """Add the learning curve, with a band where there are several seeds, and the final scores."""
    points = min((len(returns) for _, returns in curves), default=0)
    if points == 0:
        return
    steps = curves[0][0][:points]
    returns = np.stack([returns[:points] for _, returns in curves])
    run.figure("Greedy return", plot_curves({name: (steps, returns)}))
    best = np.array([returns.max() for _, returns in curves])
    row: dict[str, object] = {"seeds": len(curves), "best return, IQM": round(iqm(best), 4)}
    if len(curves) > 1:
        low, high = bootstrap_interval(best, seed=run.seed)
        row |= {"95% from": round(low, 4), "to": round(high, 4)}
        row |= {"worst seed": round(float(best.min()), 4)}
    run.table("Best evaluated policies", [row])


def show_policy(cfg: AgentConfig, policy: Policy, run: Runtime) -> None:
    """Add an animation of one episode, where the environment can be drawn."""
    if run.output is None or not run.is_main:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.gif"
        try:
            record_gif(policy, cfg.env, path, seed=run.seed, fps=None)
        except Exception as error:  # drawing is others' code, and no picture is worth the training
            run.note("The best policy at work", f"No animation: {error}")
            return
        run.figure("The best policy at work", path)
