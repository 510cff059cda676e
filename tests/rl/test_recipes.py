"""Every recipe runs from end to end, at a small scale, and leaves a policy that loads again."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch.errors import UsageError
from launch.recipe import recipes as installed
from launch.report import write_report
from launch.runtime import Runtime
from rl import recipes
from rl.agent import AgentConfig
from rl.envs import make_envs
from rl.evaluation import evaluate, load_policy

# Changes that make a recipe short; those that its config does not have are left out.
SMALL: dict[str, Any] = {
    "env_steps": 640,
    "rollout_steps": 16,
    "minibatches": 2,
    "epochs": 2,
    "learning_starts": 100,
    "batch_size": 16,
    "eval_episodes": 2,
    "max_episode_steps": 60,
}
GENERIC = {"a2c": "CartPole-v1", "dqn": "CartPole-v1", "ppo": "Pendulum-v1"}
GENERIC |= {"reinforce": "CartPole-v1", "sac": "CartPole-v1", "td3": "Pendulum-v1"}
AGENTS = [name for name in recipes.__all__ if isinstance(getattr(recipes, name)(), AgentConfig)]


def small(name: str) -> Any:  # noqa: ANN401 any agent's config
    job = getattr(recipes, name)()
    known = {f.name for f in fields(job)}
    changes = {key: value for key, value in SMALL.items() if key in known}
    changes["envs"] = min(job.envs, 4)
    if name in GENERIC:
        changes["env"] = GENERIC[name]
    return replace(job, **changes)


@pytest.mark.parametrize("name", AGENTS)
def test_agent_recipe_leaves_a_policy_that_loads_and_acts(name: str, tmp_path: Path) -> None:
    job = small(name)
    job.check()
    with Runtime(job.runtime, output=tmp_path / "run", seed=job.seed) as run:
        job.run(run)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    done = [json.loads(line)["env_steps"] for line in lines]
    assert done == sorted(done)
    assert 0.8 * job.env_steps < done[-1] <= job.env_steps
    assert "eval/return" in json.loads(lines[-1])
    policy = load_policy(tmp_path / "run" / "policy")
    envs = make_envs(job.env, 3, seed=1)
    actions = policy.act(envs.reset())
    assert all(envs.action_space.contains(action) for action in actions)
    envs.close()
    returns = evaluate(policy, job.env, episodes=2, seed=5, max_episode_steps=60)
    assert returns.shape == (2,)
    assert np.isfinite(returns).all()


def test_every_recipe_is_installed_under_its_name() -> None:
    names = {name.replace("-", "_"): r.target for name, r in installed().items()}
    assert {name: f"rl.recipes:{name}" for name in recipes.__all__}.items() <= names.items()


def test_several_seeds_are_compared_and_the_best_policy_is_left(tmp_path: Path) -> None:
    job = replace(small("ppo_cartpole"), seeds=2)
    with Runtime(job.runtime, output=tmp_path / "run", seed=job.seed) as run:
        job.run(run)
    found = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = [record["eval/return"] for record in found]
    assert len(best) == 2
    stages = sorted((tmp_path / "run" / "stages").iterdir())
    winner = stages[max(range(2), key=lambda k: (best[k], k))]
    for file in ("policy.json", "model.safetensors"):
        left = (tmp_path / "run" / "policy" / file).read_bytes()
        assert left == (winner / "policy" / file).read_bytes()
    items = (tmp_path / "run" / "items.jsonl").read_text()
    assert "Greedy return" in items
    assert "95% from" in items


def test_a_run_of_another_recipe_is_not_resumed(tmp_path: Path) -> None:
    from launch.config import to_yaml

    job, other = small("ppo_cartpole"), small("dqn_cartpole")
    complete = f"# recipe: ppo-cartpole\n{to_yaml(job)}"
    with Runtime(job.runtime, output=tmp_path, config_yaml=complete) as run:
        run.log(1, {"env_steps": 1})
    complete = f"# recipe: dqn-cartpole\n{to_yaml(other)}"
    with pytest.raises(UsageError, match="holds a run of the recipe ppo-cartpole, and this is dqn"):
        Runtime(other.runtime, output=tmp_path, config_yaml=complete, resume=True)


def test_several_seeds_need_no_run_folder() -> None:
    replace(small("ppo_cartpole"), seeds=2).run(Runtime())


def test_report_shows_the_trained_policy_at_work(tmp_path: Path) -> None:
    job = small("ppo_cartpole")
    with Runtime(job.runtime, output=tmp_path / "run", seed=job.seed) as run:
        job.run(run)
    report = write_report(tmp_path / "run").read_text()
    (found,) = re.findall(r"data:image/gif;base64,([^\"]+)", report)
    gif = (tmp_path / "run" / "figures" / "the-best-policy-at-work.gif").read_bytes()
    assert base64.b64decode(found) == gif
    with Image.open(io.BytesIO(gif)) as picture:
        assert picture.size == (600, 400)
        assert picture.n_frames > 5
    assert "No animation" not in report


def test_run_without_the_extra_render_ends_well_and_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "pygame"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pygame", None)
    job = small("ppo_cartpole")
    with Runtime(job.runtime, output=tmp_path / "run", seed=job.seed) as run:
        job.run(run)
    load_policy(tmp_path / "run" / "policy")
    report = write_report(tmp_path / "run").read_text()
    assert "No animation: rendering CartPole-v1 needs what is not installed" in report
    assert "monro[render]" in report
    assert "data:image/gif" not in report


def test_environment_that_breaks_when_drawn_costs_the_animation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gymnasium.envs.classic_control import CartPoleEnv

    def render(self: CartPoleEnv) -> None:
        raise ZeroDivisionError("no width")

    monkeypatch.setattr(CartPoleEnv, "render", render)
    job = small("ppo_cartpole")
    with Runtime(job.runtime, output=tmp_path / "run", seed=job.seed) as run:
        job.run(run)
    assert "No animation: no width" in write_report(tmp_path / "run").read_text()
