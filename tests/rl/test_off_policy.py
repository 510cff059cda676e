from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import scipy.stats
import torch
from gymnasium import spaces
from safetensors.torch import load_file
from torch import nn

from launch.config import from_yaml, to_yaml
from launch.errors import UsageError
from launch.metrics import Metric
from launch.runtime import Runtime
from rl import dqn, sac, td3
from rl.agent import AgentConfig, own_envs
from rl.evaluation import load_policy
from rl.memory import Memory, Uniform
from rl.off_policy import Agent, TargetNetwork, frozen, means, uniform_actions
from rl.policies import GreedyPolicy

SPEC = importlib.util.spec_from_file_location(
    "off_policy_contract", Path(__file__).with_name("off_policy_contract.py")
)
assert SPEC is not None
assert SPEC.loader is not None
contract = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(contract)

CLOCK = ("seconds", "speed/")


def records(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(CLOCK)} for line in lines
    ]


class KilledError(Exception):
    """What ends a run in the middle of an iteration."""


def killed_after(logs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done, log = 0, Runtime.log

    def fail(run: Runtime, step: int, metrics: Mapping[str, Metric]) -> dict[str, float]:
        nonlocal done
        if done == logs:
            raise KilledError
        done += 1
        return log(run, step, metrics)

    monkeypatch.setattr(Runtime, "log", fail)


@pytest.mark.parametrize("name", contract.JOBS)
def test_run_killed_and_resumed_equals_one_never_stopped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, train = contract.JOBS[name]
    cfg = replace(cfg, save_every=432)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with Runtime(output=whole, seed=1) as run:
        train(cfg, run)
    with monkeypatch.context() as patch:
        killed_after(3, patch)
        with pytest.raises(KilledError), Runtime(output=cut, seed=1) as run:
            train(cfg, run)
    assert (cut / "checkpoints" / "step-00000002").exists()
    with Runtime(output=cut, seed=1, resume=True) as run:
        train(cfg, run)
    assert records(whole) == records(cut)
    last = sorted(p.name for p in (whole / "checkpoints").iterdir())[-1]
    files = [p.relative_to(whole) for p in (whole / "checkpoints" / last).glob("*.safetensors")]
    for file in [*files, Path("policy/model.safetensors")]:
        one, other = load_file(whole / file), load_file(cut / file)
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, other[key]), (file, key)


@pytest.mark.parametrize("name", contract.JOBS)
def test_run_learns_records_and_leaves_the_best_policy(name: str, tmp_path: Path) -> None:
    cfg, train = contract.JOBS[name]
    with Runtime(output=tmp_path / "run", seed=2) as run:
        policy = train(cfg, run)
    found = records(tmp_path / "run")
    assert [r["env_steps"] for r in found] == sorted({r["env_steps"] for r in found})
    assert len(found) in (5, 6)  # 200 env steps, in whole rounds
    assert found[-1]["env_steps"] == 1_080
    assert found[0]["loss"] == 0.0  # not learned yet, in 250 env steps
    assert found[-1]["loss"] > 0
    assert found[-1]["grad_norm"] > 0
    evaluated = [r["eval/return"] for r in found if "eval/return" in r]
    assert len(evaluated) >= 3
    assert found[-1]["eval/best"] == max(evaluated)
    loaded = load_policy(tmp_path / "run" / "policy")
    observations = np.random.default_rng(0).normal(size=(6, *policy.observation_space.shape))
    observations = observations.astype(np.float32)
    np.testing.assert_array_equal(loaded.act(observations), policy.act(observations))


@pytest.mark.parametrize("name", contract.JOBS)
def test_config_survives_yaml(name: str) -> None:
    cfg, _ = contract.JOBS[name]
    cfg = replace(cfg, env="CartPole-v1")  # a function of a script has no name in YAML
    assert from_yaml(to_yaml(cfg), type(cfg)()) == cfg


CONFIGS = [dqn.DQNConfig, sac.SACConfig, td3.TD3Config]


@pytest.mark.parametrize("make", CONFIGS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discount": 1.5}, "discount=1.5: it lies between 0 and 1"),
        ({"batch_size": 0}, "batch_size=0: give at least 1"),
        ({"updates_per_train": 0}, "updates_per_train=0: give at least 1"),
        ({"learning_starts": -1}, "learning_starts=-1: give 0 or a number of env steps"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0: nothing would be learned"),
        (
            {"batch_size": 32, "replay": Uniform(capacity=31)},
            "capacity=31, and batch_size=32: it has to hold at least a batch",
        ),
        (
            {"envs": 3, "train_every": 4},
            "train_every=4 with envs=3: .* a multiple of envs, such as 6",
        ),
    ],
)
def test_number_out_of_range_is_refused(
    make: type[AgentConfig], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(env="CartPole-v1", **changes)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("cfg", "train", "message"),
    [
        (
            dqn.DQNConfig(env="Pendulum-v1"),
            dqn.train,
            r"DQN acts in a Discrete space, and the environment has Box\(-2\.0.*: use ppo, sac",
        ),
        (
            td3.TD3Config(env="CartPole-v1"),
            td3.train,
            r"TD3 acts in a Box space, and the environment has Discrete\(2\): use dqn",
        ),
        (
            sac.SACConfig(env=lambda: contract.walks.Walk(spaces.MultiDiscrete([2, 2]))),
            sac.train,
            r"SAC acts in a Box or Discrete space, and the environment has MultiDiscrete",
        ),
        (
            sac.SACConfig(env=lambda: contract.walks.Walk(spaces.Box(-np.inf, np.inf, (1,)))),
            sac.train,
            "unbounded action space",
        ),
    ],
)
def test_wrong_action_space_is_refused_before_the_work(
    cfg: dqn.DQNConfig, train: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cfg.check()
    with pytest.raises(ValueError, match=message):
        train(cfg, Runtime())  # type: ignore[operator]  # one of three functions


def test_environment_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="no environment 'CartPole-v9'"):
        dqn.DQNConfig(env="CartPole-v9").check()


def agent(train_every: int, **changes: int) -> Agent:
    cfg = AgentConfig(env="CartPole-v1", **changes)
    run = Runtime()
    envs = own_envs(cfg, run)
    memory = Memory(Uniform(), envs, envs.envs.action_space, run, discount=0.5)
    network = dqn.QNetworkConfig(hidden=()).build(envs.envs.observation_space, 2, torch.Generator())
    policy = GreedyPolicy(network, envs.envs.observation_space, envs.envs.action_space)
    return Agent(cfg, run, envs, policy, memory, {}, train_every=train_every)


def test_blocks_are_numbered_over_the_run_and_remember_every_step() -> None:
    # 2 environments, blocks of 60 / 2 steps; an iteration is 4 blocks, 240 env steps.
    made, seen = agent(60, envs=2, env_steps=500), []

    def act(observations: object, masks: object, t: int) -> tuple[np.ndarray, np.ndarray]:
        seen.append(t)
        return np.zeros(2, np.int64), np.zeros(2, np.int64)

    assert made.course.iterations == 3
    found = [list(made.blocks(iteration, act)) for iteration in (1, 2, 3)]
    assert [[b.number for b in blocks] for blocks in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert [b.after for blocks in found for b in blocks] == [*range(60, 481, 60), 500]
    assert [b.before for blocks in found for b in blocks] == list(range(0, 481, 60))
    assert seen == [*range(120), *range(120), *range(10)]
    assert len(made.memory.replay) == 500


@pytest.mark.parametrize(("train_every", "length"), [(1, 200), (16, 208), (256, 256)])
def test_iteration_is_whole_rounds_of_some_200_env_steps(train_every: int, length: int) -> None:
    assert agent(train_every, envs=1).course.env_steps(1) == length


def test_uniform_actions_are_uniform() -> None:
    normals = np.random.default_rng(0).standard_normal((4_000, 1), dtype=np.float32)
    found = scipy.stats.kstest(uniform_actions(normals)[:, 0], scipy.stats.uniform(-1, 2).cdf)
    assert found.pvalue > 0.1


def test_target_network_goes_its_share_of_the_way_and_is_not_trained() -> None:
    network = nn.Linear(1, 1)
    target = TargetNetwork(network)
    with torch.no_grad():
        target.network.weight.fill_(1.0)
        network.weight.fill_(3.0)
    target.follow(0.25)
    assert target.network.weight.item() == 1.5
    target.follow()
    assert target.network.weight.item() == 3.0
    assert not target.network.weight.requires_grad
    assert network.weight.item() == 3.0


def test_frozen_network_passes_gradients_on_and_keeps_none() -> None:
    network, x = nn.Linear(1, 1), torch.ones(1, 1, requires_grad=True)
    with frozen(network):
        y = network(x)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.item() == network.weight.item()
    assert network.weight.grad is None
    assert network.weight.requires_grad


def test_means_are_of_each_column_and_of_nothing_0() -> None:
    updates = [torch.tensor([1.0, 4.0]), torch.tensor([3.0, 0.0])]
    assert means(("a", "b"), updates) == {"a": 2.0, "b": 2.0}
    assert means(("a", "b"), []) == {"a": 0.0, "b": 0.0}


def test_environment_that_gives_nan_ends_the_run_with_its_name() -> None:
    class Broken(contract.walks.Walk):  # type: ignore[misc]  # a class of a script
        def _see(self) -> np.ndarray:
            seen: np.ndarray = super()._see()
            return np.where(self.steps > 4, np.nan, seen).astype(np.float32)

    def broken() -> gymnasium.Env[np.ndarray, int]:
        return Broken()

    with pytest.raises(UsageError, match="environment 0 gave NaN at step 5"):
        dqn.train(dqn.DQNConfig(env=broken, envs=1, env_steps=100), Runtime())
