"""DQN on CartPole against stable-baselines3's, both with the numbers of its zoo and one thread.

Targets: at least 2.5 times the env steps a second, at no worse sample efficiency: env steps until
20 greedy episodes return 475 on average. Seconds are those of the processor, without the
evaluations. Our side runs ``rl.dqn.train`` as users do, with logging, clipping and a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.interleave import in_turn
from benchmarks.measure import emit, spread

SOLVED = 475.0
EPISODES = 20


def monro(a: argparse.Namespace) -> dict[str, object]:
    import rl.agent
    from launch.optimizers import AdamW
    from launch.runtime import Runtime
    from rl.dqn import DQNConfig, train
    from rl.exploration import Linear
    from rl.networks import QNetworkConfig

    cfg = DQNConfig(
        env="CartPole-v1",
        env_steps=a.steps,
        envs=1,
        network=QNetworkConfig(hidden=(256, 256)),
        optimizer=AdamW(learning_rate=2.3e-3, beta2=0.999),
        exploration=Linear(1.0, 0.04, int(0.16 * a.steps)),
        train_every=256,
        updates_per_train=128,
        batch_size=64,
        target_every=10,
        learning_starts=1_000,
        eval_every=2_048,
        eval_episodes=EPISODES,
    )
    evaluate, evaluations = rl.agent.evaluate, [0.0]

    def timed(*args: object, **named: object) -> object:
        start = time.process_time()
        found = evaluate(*args, **named)
        evaluations.append(time.process_time() - start)
        return found

    rl.agent.evaluate = timed
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        with Runtime(output=Path(folder) / "run", seed=a.seed) as run:
            train(cfg, run)
        seconds = time.process_time() - start - sum(evaluations)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    curve = [
        (int(record["env_steps"]), record["eval/return"])
        for record in map(json.loads, lines)
        if "eval/return" in record
    ]
    return {"env_steps_per_s": a.steps / seconds, "solved_at": _solved(curve)}


def peer(a: argparse.Namespace) -> dict[str, object]:
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    curve: list[tuple[int, float]] = []
    own = make_vec_env("CartPole-v1", n_envs=EPISODES, seed=a.seed + 10_000)
    evaluations = [0.0]

    class Evaluate(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % 2_048 == 0:
                start = time.process_time()
                score, _ = evaluate_policy(self.model, own, n_eval_episodes=EPISODES)
                curve.append((self.num_timesteps, float(score)))
                evaluations.append(time.process_time() - start)
            return True

    model = DQN(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=1, seed=a.seed),
        seed=a.seed,
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
    start = time.process_time()
    model.learn(a.steps, callback=Evaluate())
    seconds = time.process_time() - start - sum(evaluations)
    return {"env_steps_per_s": a.steps / seconds, "solved_at": _solved(curve)}


def _solved(curve: list[tuple[int, float]]) -> int | None:
    return next((steps for steps, score in curve if score >= SOLVED), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["both", "monro", "peer"], default="both")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3, help="each with another seed")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.side != "both":
        print(json.dumps(monro(a) if a.side == "monro" else peer(a)))
        return
    found: dict[str, list[dict[str, object]]] = {"monro": [], "peer": []}
    for seed in range(a.seed, a.seed + a.rounds):
        pair = in_turn("benchmarks.bench_dqn", ["--steps", str(a.steps), "--seed", str(seed)], 1)
        for side, runs in pair.items():
            found[side] += runs
    figures: dict[str, object] = {"steps": a.steps, "seeds": a.rounds}
    speeds = {side: [run["env_steps_per_s"] for run in runs] for side, runs in found.items()}
    for side, runs in found.items():
        figures[f"{side}_env_steps_per_s"] = spread(speeds[side])
        figures[f"{side}_solved_at"] = [run["solved_at"] for run in runs]
    pairs = zip(speeds["monro"], speeds["peer"], strict=True)
    figures["ratio"] = spread([ours / theirs for ours, theirs in pairs])
    emit("dqn", figures, ("torch", "gymnasium", "stable-baselines3"))


if __name__ == "__main__":
    main()
