from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from two_processes import on_two_processes
from warm import Warm

from launch.errors import UsageError
from launch.metrics import Metric
from launch.runtime import Runtime
from rl import a2c, ppo, reinforce
from rl.actor_critic import SeparateTrunks
from rl.agent import AgentConfig
from rl.on_policy import Learner, ObservationScaling, RewardScaling, explained_variance
from rl.rollouts import Steps

SCRIPT = Path(__file__).with_name("agent_contract.py")
SPEC = importlib.util.spec_from_file_location("agent_contract", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
contract = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(contract)

STORY = [  # observation, reward, what it led to
    (0.0, 1.0, ""),
    (1.0, 1.0, ""),
    (2.0, 4.0, "terminated at 9"),
    (4.0, 2.0, ""),
    (5.0, 3.0, "truncated at 8"),
    (6.0, 3.0, ""),
    (7.0, 0.0, ""),
]


class Story(gymnasium.Env[np.ndarray, int]):
    """Tells the same story whatever is done; only its first reset begins it."""

    observation_space = spaces.Box(-10.0, 10.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.at = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ANN401
        super().reset(seed=seed)
        return self._see(), {}

    def step(self, action: int) -> Any:  # noqa: ANN401
        _, reward, end = STORY[self.at]
        self.at += 1
        seen = np.array([float(end[-1])], np.float32) if end else self._see()
        return seen, reward, end.startswith("terminated"), end.startswith("truncated"), {}

    def _see(self) -> np.ndarray:
        return np.array([STORY[self.at][0]], np.float32)


def learner(env: Any, **changes: Any) -> Learner:  # noqa: ANN401 any source, and any setting
    settings: dict[str, Any] = {
        "network": SeparateTrunks(hidden=()),
        "optimizer": ppo.PPOConfig().optimizer,
        "discount": 0.5,
        "observations": None,
        "rewards": None,
    }
    cfg = AgentConfig(env=env, envs=changes.pop("envs", 1))
    return Learner(cfg, changes.pop("run", Runtime()), **(settings | changes))


def value_is_observation(agent: Learner) -> None:
    agent.network.critic.head.weight.data.fill_(1.0)
    agent.network.critic.head.bias.data.zero_()


def test_advantages_bootstrap_from_the_final_observation_of_a_truncation_alone() -> None:
    # V(s) = s, gamma = lambda = 1/2. delta_t = r + V(s') / 2 - V(s), with V(s') = 0 at the terminal
    # and 8 at the truncation; 7 follows the last step.
    #   delta = 1.5, 1, 2 | .5, 2 | .5
    # A_2 = 2, A_1 = 1 + 2/4, A_0 = 1.5 + 1.5/4 | A_4 = 2, A_3 = .5 + 2/4 | A_5 = .5
    agent = learner(Story)
    value_is_observation(agent)
    steps = agent.rollout(6, 1).steps(0.5, 0.5)
    assert steps.values.tolist() == [0.0, 1.0, 2.0, 4.0, 5.0, 6.0]
    assert steps.advantages.tolist() == [1.875, 1.5, 2.0, 1.0, 2.0, 0.5]
    assert steps.targets.tolist() == [1.875, 2.5, 4.0, 5.0, 7.0, 6.5]


def test_whole_episodes_stop_when_each_environment_has_ended_one() -> None:
    agent = learner(Story, quota=1)
    value_is_observation(agent)
    rollout = agent.rollout(6, 1, whole=True)
    assert rollout.rewards.tolist() == [[1.0, 1.0, 4.0]]
    # G_2 = 4, G_1 = 1 + 4/2, G_0 = 1 + 3/2; minus the values 0, 1, 2
    assert rollout.steps(0.5, 1.0).advantages.tolist() == [2.5, 2.0, 2.0]


def test_whole_episode_that_is_cut_off_goes_on_with_a_value() -> None:
    agent = learner(Story, quota=1)
    value_is_observation(agent)
    rollout = agent.rollout(2, 1, whole=True)
    assert rollout.truncated.tolist() == [[False, True]]
    # G_1 = 1 + V(2)/2 = 2, G_0 = 1 + 2/2
    assert rollout.steps(0.5, 1.0).targets.tolist() == [2.0, 2.0]


def test_reset_rows_of_next_step_autoreset_are_never_trained_on() -> None:
    mode = gymnasium.vector.AutoresetMode.NEXT_STEP
    envs = gymnasium.vector.SyncVectorEnv([contract.Walk] * 2, autoreset_mode=mode)
    agent = learner(envs, envs=2, observations=ObservationScaling())
    rollout = agent.rollout(40, 1)
    invalid = (~rollout.valid).t().flatten().nonzero().squeeze(1)
    assert len(invalid) >= 8  # each environment ends at least four episodes
    assert not set(rollout.rows.tolist()) & set(invalid.tolist())
    assert len(rollout.rows) + len(invalid) == 80
    # A row of a reset shows the final observation again: the moments leave it out, too.
    kept = np.asarray(rollout.raw)[rollout.rows.numpy()]
    np.testing.assert_allclose(agent.policy.normaliser.moments.mean, kept.mean(0), rtol=1e-6)  # type: ignore[union-attr]  # there is one
    # What an invalid row says changes no advantage of another.
    steps = rollout.steps(0.9, 0.9)
    rewards = rollout.rewards.masked_fill(~rollout.valid, 100.0)
    changed = replace(rollout, rewards=rewards).steps(0.9, 0.9)
    assert torch.equal(changed.advantages[rollout.rows], steps.advantages[rollout.rows])


@pytest.mark.parametrize("env", [contract.masked_walk, contract.box_walk, "CartPole-v1"])
def test_recorded_log_probs_and_values_are_those_of_the_network(env: Any) -> None:  # noqa: ANN401
    agent = learner(env, envs=3, observations=ObservationScaling(), rewards=RewardScaling())
    for step in (1, 2):
        rollout = agent.rollout(20, step)
        log_probs, _, values = agent.evaluate(rollout, torch.arange(60))
        torch.testing.assert_close(log_probs.detach(), rollout.log_probs, rtol=0, atol=1e-6)
        torch.testing.assert_close(values.detach(), rollout.values.t().flatten())
        if rollout.action_masks is not None:
            assert not rollout.action_masks.all()
            assert rollout.action_masks.gather(1, rollout.actions[:, None]).all()


def test_observations_are_scaled_by_what_was_seen_before_the_rollout() -> None:
    agent = learner(contract.Walk, envs=2, observations=ObservationScaling())
    first = agent.rollout(30, 1)
    torch.testing.assert_close(first.observations, torch.from_numpy(first.raw))
    second = agent.rollout(30, 2)
    mean, deviation = np.mean(first.raw, axis=0), np.std(first.raw, axis=0)
    expected = ((second.raw - mean) / deviation).astype(np.float32)
    torch.testing.assert_close(second.observations, torch.from_numpy(expected))


@given(seed=st.integers(0, 2**16))
def test_explained_variance_is_one_less_the_share_of_the_errors(seed: int) -> None:
    targets, values = torch.randn(2, 40, generator=torch.Generator().manual_seed(seed))
    rest = {name: torch.zeros(40) for name in ("index", "log_probs", "advantages")}
    found = explained_variance(Steps(targets=targets, values=values, **rest), Runtime())
    expected = 1 - np.var((targets - values).numpy()) / np.var(targets.numpy())
    assert float(found) == pytest.approx(float(expected), rel=1e-4, abs=1e-5)
    same = Steps(targets=torch.ones(40), values=values, **rest)
    assert float(explained_variance(same, Runtime())) == 0.0


# -- runs ----------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


def records(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "speed/")
    return [{k: v for k, v in line.items() if not k.startswith(clock)} for line in lines]


def killed_after(logs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the record after so many end the run, before a checkpoint of its step is written."""
    log, count = Runtime.log, 0

    def fail(self: Runtime, step: int, metrics: Mapping[str, Metric]) -> dict[str, float]:
        nonlocal count
        count += 1
        figures = log(self, step, metrics)
        if count > logs:
            raise KilledError
        return figures

    monkeypatch.setattr(Runtime, "log", fail)


@pytest.mark.parametrize("name", contract.JOBS)
@pytest.mark.parametrize("logs", [1, 4])
def test_run_killed_and_resumed_equals_one_never_stopped(
    name: str, logs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, train = contract.JOBS[name]
    cfg = replace(cfg, save_every=75)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with Runtime(output=whole, seed=1) as run:
        train(cfg, run)
    with monkeypatch.context() as patch:
        killed_after(logs, patch)
        with pytest.raises(KilledError), Runtime(output=cut, seed=1) as run:
            train(cfg, run)
    with Runtime(output=cut, seed=1, resume=True) as run:
        train(cfg, run)
    assert records(whole) == records(cut)
    last = sorted(p.name for p in (whole / "checkpoints").iterdir())[-1]
    for file in (f"checkpoints/{last}/network.safetensors", "policy/model.safetensors"):
        one, other = load_file(whole / file), load_file(cut / file)
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, other[key]), (file, key)
    assert (whole / "policy/policy.json").read_text() == (cut / "policy/policy.json").read_text()


@pytest.mark.distributed
def test_two_processes_give_the_figures_of_one(tmp_path: Path, warmed: Warm) -> None:
    done = on_two_processes(warmed, SCRIPT, str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    contract.train_all(tmp_path / "one")
    for name in contract.JOBS:
        one, two = (records(tmp_path / x / "stages" / name) for x in ("one", "two"))
        assert len(one) == len(two) >= 5, name
        for a, b in zip(one, two, strict=True):
            assert a.keys() == b.keys()
            for figure in ("episode/return", "episode/length"):
                assert a.get(figure, 0.0) == pytest.approx(b.get(figure, 0.0), rel=1e-6)
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5), name


CONFIGS = [ppo.PPOConfig, a2c.A2CConfig, reinforce.REINFORCEConfig]


@pytest.mark.parametrize("make", CONFIGS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discount": 1.5}, "discount=1.5: it lies between 0 and 1"),
        ({"envs": 0}, "envs=0: give at least 1"),
        ({"micro_batch": 0}, "micro_batch=0: give at least 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0: nothing would be learned"),
    ],
)
def test_numbers_out_of_range_are_refused(
    make: type[AgentConfig], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(env="CartPole-v1", **changes)


class Levers(Story):
    action_space = spaces.MultiDiscrete([2, 3])  # type: ignore[assignment]  # on purpose


@pytest.mark.parametrize("make", CONFIGS)
@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("", "no environment is given: add --env ID"),
        ("CartPoll-v1", "no environment 'CartPoll-v1'"),
        (
            Levers,
            r"the action space is MultiDiscrete\(\[2 3\]\), and PPO, A2C and REINFORCE act in",
        ),
    ],
)
def test_environment_that_cannot_be_learned_is_refused_before_the_work(
    make: type[Any],
    env: Any,  # noqa: ANN401
    message: str,
) -> None:
    with pytest.raises(UsageError, match=message):
        make(env=env).check()
    if env:
        with pytest.raises(UsageError, match=message):
            learner(env)


class Marks(Story):
    observation_space = spaces.Dict(place=Story.observation_space)  # type: ignore[assignment]

    def _see(self) -> Any:  # noqa: ANN401
        return {"place": super()._see()}


class Pictures(Story):
    observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)

    def _see(self) -> np.ndarray:
        return np.zeros((36, 36, 3), np.uint8)


@pytest.mark.parametrize("make", CONFIGS)
@pytest.mark.parametrize("env", [Marks, Pictures, "FrozenLake-v1"])
def test_observations_without_moments_are_not_scaled(make: type[Any], env: Any) -> None:  # noqa: ANN401
    cfg = make(env=env, observations=ObservationScaling())
    with pytest.raises(UsageError, match=r"observations are scaled by their moments, .*leave the"):
        cfg.check()
    replace(cfg, observations=None).check()
    with pytest.raises(UsageError, match="observations are scaled by their moments"):
        learner(env, observations=ObservationScaling())


class Broken(contract.Walk):
    def _see(self) -> np.ndarray:
        seen = super()._see()
        return np.full_like(seen, np.nan) if self.steps == 4 else seen


@pytest.mark.parametrize(
    ("cfg", "train"),
    [
        (make(env=Broken, env_steps=400), module.train)
        for make, module in zip(CONFIGS, (ppo, a2c, reinforce), strict=True)
    ],
)
def test_nan_of_an_environment_ends_the_run_and_names_the_place(cfg: Any, train: Any) -> None:  # noqa: ANN401
    with pytest.raises(UsageError, match=r"environment 0 gave NaN at step 4 of an episode"):
        train(cfg, Runtime())


@pytest.mark.parametrize("name", ["ppo-cartpole", "a2c", "reinforce"])
@pytest.mark.parametrize(("env_steps", "envs"), [(1000, 8), (333, 7), (41, 8)])
def test_env_steps_come_close_to_the_total_and_never_pass_it(
    name: str, env_steps: int, envs: int, tmp_path: Path
) -> None:
    cfg, train = contract.JOBS[name]
    cfg = replace(cfg, env_steps=env_steps, envs=envs)
    with Runtime(output=tmp_path / "run") as run:
        train(cfg, run)
    found = [record["env_steps"] for record in records(tmp_path / "run")]
    assert found == sorted(set(found))
    assert 0.8 * env_steps < found[-1] <= env_steps
    assert "eval/return" in records(tmp_path / "run")[-1]


@pytest.mark.parametrize("name", ["ppo-cartpole", "a2c", "reinforce"])
def test_run_that_stopped_early_does_nothing_more_when_it_is_resumed(
    name: str, tmp_path: Path
) -> None:
    cfg, train = contract.JOBS[name]
    cfg = replace(cfg, stop_at=-1e9, eval_every=150)
    with Runtime(output=tmp_path / "run") as run:
        train(cfg, run)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    last = records(tmp_path / "run")[-1]
    assert 100 <= last["env_steps"] < 400
    with Runtime(output=tmp_path / "run", resume=True) as run:
        train(cfg, run)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("name", ["ppo-masked", "ppo-box", "a2c", "reinforce"])
def test_micro_batches_change_no_figure_but_by_rounding(name: str, tmp_path: Path) -> None:
    cfg, train = contract.JOBS[name]
    for rows in (5, 1_000):
        with Runtime(output=tmp_path / f"{rows}") as run:
            train(replace(cfg, micro_batch=rows), run)
    pairs = zip(records(tmp_path / "5"), records(tmp_path / "1000"), strict=True)
    for small, large in pairs:
        assert small == pytest.approx(large, rel=1e-3, abs=1e-5)
