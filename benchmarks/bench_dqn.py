"""DQN on CartPole against stable-baselines3's, both with the numbers of its zoo and one thread.

Targets: at least 2.5 times the env steps a second, at no worse sample efficiency, which is the
greedy return of 20 episodes at equal env steps: its mean over all evaluations, and the env steps
until it is 475. Evaluations are not timed, nor is a short training before, in which both sides load
what they load late. Our side runs ``rl.dqn.train`` as users do, with logging, clipping and a
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.interleave import in_turn
from benchmarks.measure import emit, spread

SOLVED = 475.0
EPISODES = 20
EVERY = 2_048
WARM_UP = 2_048
"""Env steps of the training before."""

Curve = list[tuple[int, float]]


class Clock:
    """Seconds of the processor and of the wall since it was made, without those taken out."""

    def __init__(self) -> None:
        self._from = _now()

    def take_out(self, since: tuple[float, float]) -> None:
        """Leave out what has passed since ``since``."""
        begun, now = self._from, _now()
        self._from = begun[0] + now[0] - since[0], begun[1] + now[1] - since[1]

    def rates(self, steps: int) -> dict[str, float]:
        """Return steps a second, by either clock."""
        now = _now()
        seconds = {"cpu": now[0] - self._from[0], "wall": now[1] - self._from[1]}
        return {f"env_steps_per_{name}_s": steps / value for name, value in seconds.items()}


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def monro(steps: int, seed: int) -> tuple[dict[str, float], Curve]:
    import rl.agent
    from launch.optimizers import AdamW
    from launch.runtime import Runtime
    from rl.dqn import DQNConfig, train
    from rl.exploration import Linear
    from rl.networks import QNetworkConfig

    cfg = DQNConfig(
        env="CartPole-v1",
        env_steps=steps,
        envs=1,
        network=QNetworkConfig(hidden=(256, 256)),
        optimizer=AdamW(learning_rate=2.3e-3, beta2=0.999),
        exploration=Linear(1.0, 0.04, int(0.16 * steps)),
        train_every=256,
        updates_per_train=128,
        batch_size=64,
        target_every=10,
        learning_starts=1_000,
        eval_every=EVERY,
        eval_episodes=EPISODES,
        seed=seed,
    )
    evaluate = rl.agent.evaluate

    def untimed(*args: object, **named: object) -> object:
        since = _now()
        found = evaluate(*args, **named)
        clock.take_out(since)
        return found

    rl.agent.evaluate = untimed
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        with Runtime(output=Path(folder) / "run") as run:
            train(cfg, run)
        rates = clock.rates(steps)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    rl.agent.evaluate = evaluate
    records = map(json.loads, lines)
    return rates, [(r["env_steps"], r["eval/return"]) for r in records if "eval/return" in r]


def peer(steps: int, seed: int) -> tuple[dict[str, float], Curve]:
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    curve: Curve = []
    own = make_vec_env("CartPole-v1", n_envs=EPISODES, seed=seed + 10_000)

    class Evaluate(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % EVERY == 0:
                since = _now()
                score, _ = evaluate_policy(self.model, own, n_eval_episodes=EPISODES)
                curve.append((self.num_timesteps, float(score)))
                clock.take_out(since)
            return True

    clock = Clock()
    model = DQN(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=1, seed=seed),
        seed=seed,
        device="cpu",
        learning_rate=2.3e-3,
        batch_size=64,
        buffer_size=100_000,
        learning_starts=1_000,
        gamma=0.99,
        target_update_interval=10,
        train_freq=256,
        gradient_steps=128,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [256, 256]},
    )
    model.learn(steps, callback=Evaluate())
    return clock.rates(steps), curve


def one(side: str, steps: int, seed: int) -> dict[str, object]:
    train = monro if side == "monro" else peer
    train(WARM_UP, seed + 1_000)
    rates, curve = train(steps, seed)
    solved = next((at for at, score in curve if score >= SOLVED), None)
    scores = [score for _, score in curve]
    return rates | {
        "solved_at": solved,
        "mean_return": statistics.fmean(scores),
        "best_return": max(scores),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["both", "monro", "peer"], default="both")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5, help="each with another seed")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.side != "both":
        print(json.dumps(one(a.side, a.steps, a.seed)))
        return
    found: dict[str, list[dict[str, object]]] = {"monro": [], "peer": []}
    for seed in range(a.seed, a.seed + a.rounds):
        pair = in_turn("benchmarks.bench_dqn", ["--steps", str(a.steps), "--seed", str(seed)], 1)
        for side, runs in pair.items():
            found[side] += runs
    figures: dict[str, object] = {"steps": a.steps, "seeds": a.rounds}
    for clock in ("cpu", "wall"):
        name = f"env_steps_per_{clock}_s"
        speeds = {side: [run[name] for run in runs] for side, runs in found.items()}
        figures |= {f"{side}_{name}": spread(values) for side, values in speeds.items()}
        pairs = zip(speeds["monro"], speeds["peer"], strict=True)
        figures[f"{clock}_ratio"] = spread([ours / theirs for ours, theirs in pairs])
    for name in ("mean_return", "best_return", "solved_at"):
        figures |= {f"{side}_{name}": [r[name] for r in runs] for side, runs in found.items()}
    for side, runs in found.items():
        figures[f"{side}_mean_over_seeds"] = statistics.fmean(r["mean_return"] for r in runs)
    emit("dqn", figures, ("torch", "gymnasium", "stable-baselines3"))


if __name__ == "__main__":
    main()
