"""Acting on a few observations with two nets of 64 x 64: numpy on the weights against torch.

``rollout`` is what PPO does a step: both nets forward, an action drawn, its log-prob. ``act``
is ``policy.act`` as a user calls it, checks and all: the actor alone. Target: 60 us for 8 rows.
``torch`` is the readable twin of the rollout, with ``torch.distributions`` as CleanRL has it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from gymnasium import spaces

from benchmarks.measure import emit, spread
from rl.action_laws import categorical_log_probs, categorical_sample
from rl.actor_critic import SeparateTrunks
from rl.fast_networks import Forward
from rl.policies import CategoricalPolicy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=30)
    a = parser.parse_args()
    torch.set_num_threads(1)
    space, actions = spaces.Box(-np.inf, np.inf, (4,)), spaces.Discrete(2)
    model = SeparateTrunks().build(space, actions, torch.Generator().manual_seed(0))
    policy = CategoricalPolicy(model.actor, space, actions)
    actor, critic = Forward(model.actor), Forward(model.critic)
    draws = np.random.default_rng(0)
    observations = draws.standard_normal((a.rows, 4)).astype(np.float32)

    def rollout() -> None:
        logits = actor(observations)
        chosen = categorical_sample(logits, draws.random(a.rows))
        categorical_log_probs(logits, chosen)
        critic(observations)

    def act() -> None:
        policy.act(observations, deterministic=False)

    def twin() -> None:
        with torch.no_grad():
            logits, _ = model(torch.from_numpy(observations))
            law = torch.distributions.Categorical(logits=logits)
            law.log_prob(law.sample()).numpy()

    sides: dict[str, Callable[[], None]] = {"rollout": rollout, "act": act, "torch": twin}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(a.repeat + 2):
        for name, side in sides.items():
            start = time.perf_counter()
            for _ in range(a.calls):
                side()
            seconds[name].append((time.perf_counter() - start) / a.calls)
    figures = {f"{name}_us": spread([1e6 * x for x in seconds[name][2:]]) for name in sides}
    ratios = [b / x for x, b in zip(seconds["rollout"][2:], seconds["torch"][2:], strict=True)]
    emit(
        "act",
        {"settings": {"rows": a.rows}, **figures, "torch_over_rollout": spread(ratios)},
        ("torch", "numpy", "gymnasium"),
    )


if __name__ == "__main__":
    main()
