"""What all deep agents share: what their configs have in common, and what a run has to remember."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from launch.checkpoint import Stateful
from launch.config import resumable
from launch.errors import UsageError
from launch.metrics import Mean, Metric
from launch.runtime import Runtime, RuntimeConfig
from rl.agent_report import Curve, read_curve, show_policy, show_scores
from rl.envs import EnvSource, VectorEnv, check_env, env_name, make_envs
from rl.evaluation import evaluate
from rl.normalisation import RewardNormaliser
from rl.policies import Policy
from rl.spaces import Observations

__all__ = [
    "AgentConfig",
    "AllEnvs",
    "AllRewards",
    "Course",
    "Progress",
    "episode_figures",
    "iterations",
    "leave_policy",
    "own_envs",
    "run_seeds",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentConfig:
    """What every agent's config has."""

    leaves_run: ClassVar[bool] = True
    env: EnvSource = ""
    """A gymnasium id, ``package.module:Id`` to import first, or a function that makes one."""
    env_steps: int = resumable(100_000)
    """Steps in the environment in all, over all of them and all processes."""
    envs: int = 8
    """Environments side by side, over all processes."""
    max_episode_steps: int | None = None
    """A time limit for environments that have none."""
    eval_every: int = 0
    """Env steps between evaluations; 0 makes twenty in all. The last one is at the end."""
    eval_episodes: int = 20
    stop_at: float | None = None
    """Stop early at an evaluation with at least this mean return."""
    save_every: int = resumable(0)
    """Env steps between checkpoints; 0 saves at the end alone."""
    seed: int = 0
    seeds: int = 1
    """Train so many times, each from another seed, and compare."""
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=lambda: RuntimeConfig(threads=1))

    def __post_init__(self) -> None:
        for name in ("env_steps", "envs", "eval_episodes", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        for name in ("eval_every", "save_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: give 0 or a number of env steps")
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise ValueError(
                f"max_episode_steps={self.max_episode_steps}: an episode has at least one step"
            )
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"{one.name}=nan: that is no number")
            if getattr(value, "learning_rate", 1.0) == 0:
                raise ValueError(
                    f"{one.name}.learning_rate=0: nothing would be learned; give more than 0"
                )

    def check_env(self) -> None:
        """Raise UsageError if there is no such environment, or too few steps for all of them."""
        if self.env == "":
            raise UsageError("no environment is given: add --env ID, such as --env CartPole-v1")
        if self.env_steps < 5 * self.envs:
            raise UsageError(
                f"env_steps={self.env_steps} for envs={self.envs}: each environment needs some "
                "steps, at least 5; give more env_steps or fewer envs"
            )
        check_env(self.env)


class Course:
    """How many env steps each iteration takes, so that the last one ends at or below the total.

    Args:
        cfg: Total, saves and evaluations, in env steps.
        length: Steps of each environment in one iteration.
    """

    def __init__(self, cfg: AgentConfig, length: int) -> None:
        self.envs, self.length = cfg.envs, length
        self.each = cfg.env_steps // cfg.envs
        """Steps of each environment in all."""
        self.iterations = math.ceil(self.each / length)
        size = length * cfg.envs
        self.save_every = max(1, cfg.save_every // size) if cfg.save_every else 0
        eval_every = cfg.eval_every or cfg.env_steps / 20
        self.eval_every = max(1, round(eval_every / size))

    def steps(self, iteration: int) -> int:
        """Return the steps of each environment in this iteration, counted from 1."""
        return min(self.length, self.each - (iteration - 1) * self.length)

    def env_steps(self, iteration: int) -> int:
        """Return the env steps done after this iteration."""
        return min(iteration * self.length, self.each) * self.envs

    def evaluates(self, iteration: int) -> bool:
        """Return whether an evaluation is due after this iteration."""
        return iteration % self.eval_every == 0 or iteration == self.iterations


class Progress:
    """The best policy so far and whether training has stopped early; part of a checkpoint."""

    def __init__(self) -> None:
        self.best = -math.inf
        self.stopped = False
        self.weights: dict[str, Tensor] = {}
        self.normaliser: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        return {
            "best": self.best,
            "stopped": self.stopped,
            "weights": self.weights,
            "normaliser": self.normaliser,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Take what ``state_dict`` returned."""
        self.best, self.stopped = float(state_dict["best"]), bool(state_dict["stopped"])
        self.weights, self.normaliser = state_dict["weights"], state_dict["normaliser"]

    def evaluate(self, cfg: AgentConfig, policy: Policy, run: Runtime) -> dict[str, Metric]:
        """Evaluate in environments of their own; keep the policy if none before was better.

        Returns:
            ``eval/return`` and ``eval/best``; the same on every process.
        """
        with run.phase("evaluation"):
            returns = [0.0]
            if run.is_main:
                found = evaluate(
                    policy,
                    cfg.env,
                    episodes=cfg.eval_episodes,
                    seed=run.seed,
                    max_episode_steps=cfg.max_episode_steps,
                )
                returns = found.tolist()
            returns = run.gather_objects([returns])[0]
            score = sum(returns) / len(returns)
        if score >= self.best:
            self.best = score
            self.weights = copy.deepcopy(_plain(policy.network))
            if policy.normaliser is not None:
                self.normaliser = copy.deepcopy(policy.normaliser.state_dict())
            if run.output is not None:
                folder = run.output / "policy"
                run.on_main(lambda: policy.save(folder))
        self.stopped = cfg.stop_at is not None and score >= cfg.stop_at
        return {"eval/return": score, "eval/best": self.best}


def _plain(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in network.state_dict().items()}


class AllEnvs:
    """The environments of all processes as one part of a checkpoint.

    Args:
        envs: This process's.
        run: Gathers; ``state_dict`` has to be called on every process.
        name: Of the environment.
    """

    def __init__(self, envs: VectorEnv, run: Runtime, name: str) -> None:
        self.envs, self.run, self.name = envs, run, name
        self.observations: Observations = envs.reset()
        """To act on next."""

    def state_dict(self) -> dict[str, Any]:
        """Return the entries of every process, in the environments' order."""
        state = self.envs.state_dict()
        return state | {
            "first": 0,
            "environments": self.run.gather_objects(state["environments"]),
        }

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take this process's own from what ``state_dict`` returned."""
        self.observations = self.envs.load_state_dict(state_dict)


class AllRewards:
    """A reward normaliser as one part of a checkpoint, with every process's running returns."""

    def __init__(self, normaliser: RewardNormaliser, run: Runtime) -> None:
        self.normaliser, self.run = normaliser, run

    def state_dict(self) -> dict[str, Any]:
        """Return the moments, and the running returns in the environments' order."""
        state = self.normaliser.state_dict()
        return state | {"first": 0, "running": self.run.gather(state["running"])}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Take this process's own from what ``state_dict`` returned."""
        self.normaliser.load_state_dict(state_dict)


def iterations(
    run: Runtime,
    total: int,
    *,
    state: Mapping[str, Stateful],
    progress: Progress,
    save_every: int,
) -> Iterator[int]:
    """Yield 1 ... ``total`` as ``run.steps``, or until ``progress`` has stopped early.

    Then a checkpoint is saved, from which a resumed run finds that it has nothing to do.
    """
    headline = ("episode/return", "eval/return", "speed/env_steps")
    for step in run.steps(total, state=state, save_every=save_every, headline=headline):
        if not progress.stopped:
            yield step
            if progress.stopped:
                run.save(step, state)
        if progress.stopped:
            return


def own_envs(cfg: AgentConfig, run: Runtime, *, quota: int | None = None) -> AllEnvs:
    """Key the run by the config's seed; make and begin this process's share of the environments."""
    run.key_by(cfg.seed)
    share = run.share(cfg.envs)
    if cfg.envs < run.world_size:
        raise UsageError(
            f"envs={cfg.envs} for {run.world_size} processes: each needs at least one environment"
        )
    envs = make_envs(
        cfg.env,
        len(share),
        seed=run.seed,
        first=share.start,
        max_episode_steps=cfg.max_episode_steps,
        quota=quota,
    )
    return AllEnvs(envs, run, env_name(cfg.env))


def episode_figures(envs: VectorEnv, run: Runtime) -> dict[str, Metric]:
    """Return mean return and length of the episodes that have ended since the last call, if any."""
    returns, lengths = envs.take_episodes()
    if not run.sum(len(returns)):
        return {}
    return {
        "episode/return": Mean(sum(returns), len(returns)),
        "episode/length": Mean(sum(lengths), len(lengths)),
    }


def leave_policy(policy: Policy, progress: Progress, run: Runtime) -> Policy:
    """Give ``policy`` the best weights, save it and say how to watch it."""
    run.release()  # a loop that ends early leaves its model cut
    policy.network.load_state_dict(progress.weights)
    if policy.normaliser is not None:
        policy.normaliser.load_state_dict(progress.normaliser)
    if run.output is not None:
        folder = run.output / "policy"
        run.on_main(lambda: policy.save(folder))
        run.print(f"The best policy (return {progress.best:.6g}) is in {folder}")
    return policy


def run_seeds(cfg: AgentConfig, run: Runtime, train: Callable[[Any, Runtime], Policy]) -> None:
    """Train once, or once for each of several seeds, and show curves and the best policy.

    Several seeds are stages of one run; the policy of the best seed is left (ties: the later).
    """
    name = env_name(cfg.env)
    if cfg.seeds == 1:
        policy = train(cfg, run)
        show_scores(name, [read_curve(run)], run)
        show_policy(cfg, policy, run)
        return
    run.restore({})  # a run of stages has no checkpoint of its own, only records to make again
    curves: list[Curve] = []
    best, score = None, -math.inf
    for index in range(cfg.seeds):
        with run.stage(f"{index + 1}-seed-{cfg.seed + index}") as stage:
            policy = train(cfg, stage)
            curve = run.gather_objects([read_curve(stage)])[0]
        found = float(curve[1].max()) if len(curve[1]) else -math.inf
        done = int(curve[0][-1]) if len(curve[0]) else cfg.env_steps
        run.log(index + 1, {"env_steps": done, "eval/return": found})
        curves.append(curve)
        if best is None or found >= score:
            best, score = policy, found
    assert best is not None
    if run.output is not None:
        folder = run.output / "policy"
        run.on_main(lambda: best.save(folder))
    show_scores(name, curves, run)
    show_policy(cfg, best, run)
