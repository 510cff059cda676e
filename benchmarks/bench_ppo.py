"""PPO on CartPole with CleanRL's numbers, against a script of CleanRL's algorithm.

Target, on one thread: at least 4 times the peer's env steps a second, and a greedy mean return of
475 within 20k steps (median of 5 seeds). Our side runs ``rl.ppo.train`` as users do, with logging,
clipping and checkpoints on. As in the peer, the evaluation's time does not count.

The peer is a script ``cleanrl_ppo_cartpole.py`` outside this repository, in the folder ``--peers``
(or the environment variable ``MONRO_PEERS``), that takes ``--seed --repeat --threads
--total-steps --eval-every`` and prints a JSON line with ``steps_per_s``, ``steps_per_cpu_s`` and
``solved_at``. Without it our side is measured alone, and the line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import emit, spread

PEER = "cleanrl_ppo_cartpole.py"
SOLVED = 475.0


def monro(seed: int, env_steps: int, eval_every: int) -> dict[str, Any]:
    """Train once; return env steps a second, by the clock and of the processor, and when solved."""
    from launch.runtime import Runtime
    from rl import agent
    from rl.ppo import PPOConfig, train

    cfg = PPOConfig(
        env="CartPole-v1",
        env_steps=env_steps,
        envs=4,
        eval_every=eval_every,
        save_every=env_steps // 4,
        stop_at=SOLVED if eval_every < env_steps else None,
        seed=seed,
    )
    spent = [0.0, 0.0]
    evaluate = agent.Progress.evaluate

    def timed(*args: Any) -> Any:  # noqa: ANN401 a stand-in
        wall, cpu = time.perf_counter(), time.process_time()
        figures = evaluate(*args)
        spent[0] += time.perf_counter() - wall
        spent[1] += time.process_time() - cpu
        return figures

    agent.Progress.evaluate = timed  # type: ignore[method-assign]  # to leave its time out
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        output = Path(folder) / "run"
        wall, cpu = time.perf_counter(), time.process_time()
        with Runtime(cfg.runtime, output=output, seed=seed) as run:
            train(cfg, run)
        wall, cpu = time.perf_counter() - wall - spent[0], time.process_time() - cpu - spent[1]
        records = [json.loads(x) for x in (output / "metrics.jsonl").read_text().splitlines()]
    agent.Progress.evaluate = evaluate  # type: ignore[method-assign]  # back again
    solved = [r["env_steps"] for r in records if r.get("eval/return", 0.0) >= SOLVED]
    done = records[-1]["env_steps"]
    return {
        "steps_per_s": done / wall,
        "steps_per_cpu_s": done / cpu,
        "solved_at": solved[0] if solved else None,
    }


def ran(command: Sequence[str]) -> Mapping[str, Any]:
    """Return the JSON line that a command prints last."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def sides(a: argparse.Namespace, peer: Path | None) -> dict[str, list[Mapping[str, Any]]]:
    """Run both in turn, each in a process of its own."""
    ours = [sys.executable, "-m", "benchmarks.bench_ppo", "--once"]
    theirs = [sys.executable, str(peer), "--threads", "1", "--repeat", "1"]
    never = ["--eval-every", str(10 * a.env_steps)]
    found: dict[str, list[Mapping[str, Any]]] = {"monro": [], "peer": []}
    for number in range(a.rounds):
        seed = ["--seed", str(number + 1)]
        found["monro"].append(ran([*ours, *seed, "--env-steps", str(a.env_steps), *never]))
        if peer is not None:
            found["peer"].append(ran([*theirs, *seed, "--total-steps", str(a.env_steps), *never]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env-steps", type=int, default=61_440)
    parser.add_argument("--rounds", type=int, default=5, help="of the speed, both sides in turn")
    parser.add_argument("--seeds", type=int, default=5, help="of our score")
    parser.add_argument("--peers", default=os.environ.get("MONRO_PEERS", ""))
    parser.add_argument("--once", action="store_true", help="our side alone, a line for the parent")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-every", type=int, default=2_048)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.once:
        monro(0, 2_048, 4_096)  # compiles and warms up
        print(json.dumps(monro(a.seed, a.env_steps, a.eval_every)))
        return
    peer = Path(a.peers) / PEER if a.peers else None
    if peer is not None and not peer.exists():
        raise SystemExit(f"no {PEER} in {a.peers}")
    found = sides(a, peer)
    figures: dict[str, object] = {"env_steps": a.env_steps}
    for figure in ("steps_per_s", "steps_per_cpu_s"):
        values = {side: [run[figure] for run in runs] for side, runs in found.items() if runs}
        figures |= {f"{side}_{figure}": spread(of) for side, of in values.items()}
        if peer is not None:
            pairs = zip(values["monro"], values["peer"], strict=True)
            figures[f"ratio_{figure}"] = spread([ours / theirs for ours, theirs in pairs])
    if peer is None:
        figures["peer"] = f"not measured: no {PEER}; give its folder as --peers"
    solved = [monro(seed + 1, 500_000, a.eval_every)["solved_at"] for seed in range(a.seeds)]
    figures["solved_at"] = solved
    if all(solved):
        figures["median_solved_at"] = statistics.median(solved)
    emit("ppo", figures, ("torch", "gymnasium", "numpy"))


if __name__ == "__main__":
    main()
