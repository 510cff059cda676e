"""Learning in tables: the compiled loop against what one writes with numpy and gymnasium.

Q-learning and Sarsa on FrozenLake8x8, Taxi and CliffWalking, in environment steps a second, and
first-visit Monte Carlo control on Blackjack, in episodes a second. Both sides do the same updates
on one thread. Target: at least 100 times the peer. Compiling is not timed; its result is kept on
disk. ``optimum`` is the exact value, as a share of the best, of the policy that is greedy by the
mean of 8 seeds' tables of Q-learning; targets .99 on Taxi, .975 on FrozenLake8x8.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable

import gymnasium
import numpy as np

from benchmarks.interleave import in_turn
from benchmarks.measure import emit, spread

LIMITS = {"FrozenLake8x8-v1": 200, "Taxi-v4": 200, "CliffWalking-v1": 500}
METHODS = ("q_learning", "sarsa")
STEP_SIZE, DISCOUNT, LAST_EPSILON = 0.1, 0.99, 0.05
"""Exploration falls from 1 to the last rate over the first half of the steps."""


def per_second(work: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def monro(steps: int, episodes: int) -> dict[str, float]:
    """Return the speed of each workload."""
    from rl import monte_carlo, temporal_difference
    from rl.temporal_difference import Linear

    def learn(method: str, env: str, steps: int) -> None:
        getattr(temporal_difference, method)(
            env,
            discount=DISCOUNT,
            steps=steps,
            step_size=STEP_SIZE,
            epsilon=Linear(1.0, LAST_EPSILON, steps // 2),
            seed=0,
            max_episode_steps=LIMITS[env],
        )

    def play(episodes: int) -> None:
        monte_carlo.mc_epsilon_greedy(
            "Blackjack-v1", discount=1.0, episodes=episodes, epsilon=0.1, seed=0
        )

    speeds = {}
    for method in METHODS:
        for env in LIMITS:
            learn(method, env, 10)
            speeds[f"{method} {env}"] = per_second(lambda: learn(method, env, steps), steps)  # noqa: B023 (called at once)
    play(10)
    speeds["mc_epsilon_greedy Blackjack-v1"] = per_second(lambda: play(episodes), episodes)
    return speeds


def peer(steps: int, episodes: int) -> dict[str, float]:
    """Return the speed of each workload."""
    speeds = {}
    for method, learn in zip(METHODS, (peer_q_learning, peer_sarsa), strict=True):
        for env in LIMITS:
            speeds[f"{method} {env}"] = per_second(lambda: learn(env, steps), steps)  # noqa: B023 (called at once)
    speeds["mc_epsilon_greedy Blackjack-v1"] = per_second(
        lambda: peer_monte_carlo(episodes), episodes
    )
    return speeds


def peer_q_learning(name: str, steps: int) -> None:
    env = gymnasium.make(name, max_episode_steps=LIMITS[name])
    generator = np.random.default_rng(0)
    q = np.zeros((env.observation_space.n, env.action_space.n))
    state, _ = env.reset(seed=0)
    for step in range(steps):
        explores = generator.random() < max(LAST_EPSILON, 1.0 - step / (0.5 * steps))
        action = env.action_space.sample() if explores else int(np.argmax(q[state]))
        following, reward, terminated, truncated, _ = env.step(action)
        target = reward + DISCOUNT * (0.0 if terminated else q[following].max())
        q[state, action] += STEP_SIZE * (target - q[state, action])
        state = following
        if terminated or truncated:
            state, _ = env.reset()


def peer_sarsa(name: str, steps: int) -> None:
    env = gymnasium.make(name, max_episode_steps=LIMITS[name])
    generator = np.random.default_rng(0)
    q = np.zeros((env.observation_space.n, env.action_space.n))

    def choose(state: int, step: int) -> int:
        explores = generator.random() < max(LAST_EPSILON, 1.0 - step / (0.5 * steps))
        return env.action_space.sample() if explores else int(np.argmax(q[state]))

    state, _ = env.reset(seed=0)
    action = choose(state, 0)
    for step in range(steps):
        following, reward, terminated, truncated, _ = env.step(action)
        chosen = choose(following, step)
        target = reward + DISCOUNT * (0.0 if terminated else q[following, chosen])
        q[state, action] += STEP_SIZE * (target - q[state, action])
        state, action = following, chosen
        if terminated or truncated:
            state, _ = env.reset()
            action = choose(state, step)


def peer_monte_carlo(episodes: int) -> None:
    env = gymnasium.make("Blackjack-v1")
    generator = np.random.default_rng(0)
    q: dict[object, np.ndarray] = defaultdict(lambda: np.zeros(2))
    visits: dict[object, np.ndarray] = defaultdict(lambda: np.zeros(2))
    env.reset(seed=0)
    for _ in range(episodes):
        state, _ = env.reset()
        ended, path = False, []
        while not ended:
            explores = generator.random() < 0.1
            action = int(generator.integers(2)) if explores else int(np.argmax(q[state]))
            following, reward, terminated, truncated, _ = env.step(action)
            path.append((state, action, reward))
            state, ended = following, terminated or truncated
        target = 0.0
        first: dict[object, int] = {}
        for t, (state, action, _) in enumerate(path):
            first.setdefault((state, action), t)
        for t in range(len(path) - 1, -1, -1):
            state, action, reward = path[t]
            target = reward + target
            if first[state, action] == t:
                visits[state][action] += 1
                q[state][action] += (target - q[state][action]) / visits[state][action]


def optimum(env: str, steps: int = 2_000_000, seeds: int = 8) -> float:
    """Return what share of the best value the greedy policy of Q-learning's mean table has."""
    from rl.mdp import TabularMDP
    from rl.planning import policy_evaluation, value_iteration
    from rl.temporal_difference import Linear, Power, q_learning

    tables = [
        q_learning(
            env,
            discount=DISCOUNT,
            steps=steps,
            step_size=Power(1.0, 0.6),
            epsilon=Linear(1.0, 0.05, steps // 2),
            seed=seed,
        ).action_values
        for seed in range(seeds)
    ]
    mdp = TabularMDP.from_env(env)
    values = policy_evaluation(mdp, np.mean(tables, 0).argmax(1), DISCOUNT).values
    return float(mdp.start @ values / (mdp.start @ value_iteration(mdp, DISCOUNT).values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["monro", "peer"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=int, default=30_000, help="steps of the peer; ours x 100")
    a = parser.parse_args()
    if a.side == "monro":
        print(json.dumps(monro(100 * a.work, 50 * a.work)))
    elif a.side == "peer":
        print(json.dumps(peer(a.work, a.work // 2)))
    else:
        found = in_turn("benchmarks.bench_tabular", ["--work", str(a.work)], a.rounds)
        figures: dict[str, object] = {"target_ratio": 100}
        for workload in found["monro"][0]:
            ours, theirs = ([one[workload] for one in found[side]] for side in ("monro", "peer"))
            figures[workload] = {
                "monro_per_second": spread(ours),
                "peer_per_second": spread(theirs),
                "ratio": spread([x / y for x, y in zip(ours, theirs, strict=True)]),
            }
        figures["optimum"] = {
            env: float(f"{optimum(env):.4g}") for env in ("Taxi-v4", "FrozenLake8x8-v1")
        }
        emit("tabular", figures, ("gymnasium", "numba", "numpy"))


if __name__ == "__main__":
    main()
