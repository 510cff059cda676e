"""Policy and reward model in turn: what each stage learns from, resuming, and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from launch.errors import UsageError
from launch.optimizers import AdamW
from launch.runtime import Runtime
from posttrain.data.preference_files import load_preferences
from posttrain.data.tasks import Prompt
from posttrain.models import load_model, save_model, tiny_model, train_tokenizer
from posttrain.objectives import GRPO
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.iterative import IterativeGRPO
from posttrain.recipes.sources import Pretrained
from posttrain.reward_models import load_reward_model, outcome_model
from posttrain.rewards import Sample
from posttrain.rollout import Sampling
from posttrain.trainers import ContrastsConfig, GRPOConfig, RewardModelConfig

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]
STAGES = [f"{i}-{name}" for i in (1, 2) for name in ("pairs", "reward-model", "policy")]


@dataclass(frozen=True)
class Sevens:
    """A completion is right if there is a seven in it."""

    prompts: int = 12
    form: str = "chat"

    def reward(self, samples: Sequence[Sample], /) -> torch.Tensor:
        return torch.tensor([float("7" in sample.completion) for sample in samples])

    def train(self) -> list[Prompt]:
        asked = [f"{i} plus {i + 1} is" for i in range(self.prompts)]
        if self.form == "text":
            return [Prompt(text=text, answer="7") for text in asked]
        return [Prompt(messages=({"role": "user", "content": x},), answer="7") for x in asked]

    def heldout(self) -> list[Prompt]:
        return self.train()[:4]


class Never(Sevens):
    """No completion is right."""

    def reward(self, samples: Sequence[Sample], /) -> torch.Tensor:
        return torch.zeros(len(samples))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("iterative") / "policy"
    lm = tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=1, width=16, heads=2, seed=1)
    save_model(lm.model, lm.tokenizer, folder)
    return folder


def job(folder: Path) -> IterativeGRPO:
    sampling = Sampling(max_tokens=40)
    return IterativeGRPO(
        model=Pretrained(path=str(folder)),
        task=Sevens(),
        iterations=2,
        replay=0.25,
        heldout_share=0.2,
        pairs=ContrastsConfig(
            sampling=sampling, steps=2, prompts_per_step=8, group_size=6, save_every=1
        ),
        reward_training=RewardModelConfig(
            steps=3, pairs_per_step=4, optimizer=AdamW(learning_rate=1e-2), save_every=1,
            heldout_every=1,
        ),
        policy=GRPOConfig(
            objective=GRPO(kl_weight=0.04), steps=3, prompts_per_step=2, group_size=4,
            sampling=sampling, optimizer=AdamW(learning_rate=1e-2), save_every=1, probe_every=2,
        ),
        evaluation=Evaluator(group_size=2, sampling=sampling, greedy=False),
        problems=4,
        seed=3,
    )  # fmt: skip


def run(cfg: IterativeGRPO, output: Path | None, *, resume: bool = False) -> None:
    cfg.check()
    with Runtime(cfg.runtime, output=output, seed=cfg.seed, resume=resume) as runtime:
        cfg.run(runtime)


def records(path: Path) -> list[dict[str, float]]:
    clock = ("seconds", "speed/", "time/")
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith(clock)} for line in lines]


def rows(path: Path) -> list[str]:
    return (path / "data.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    run(job(folder), folder.with_name("whole"))
    return folder.with_name("whole")


def test_stages_leave_pairs_reward_models_and_policies(whole: Path) -> None:
    assert sorted(x.name for x in (whole / "stages").iterdir()) == sorted(["0-policy", *STAGES])
    for i in (1, 2):
        stages = {name: whole / "stages" / f"{i}-{name}" for name in ("pairs", "reward-model")}
        for pair in load_preferences(stages["pairs"] / "data.jsonl"):
            assert "7" in pair.chosen["content"]
            assert "7" not in pair.rejected["content"]
        load_reward_model(stages["reward-model"] / "model")
        load_model(whole / "stages" / f"{i}-policy" / "model")
        figures = records(whole / "stages" / f"{i}-policy")
        assert figures[0]["reward"] == figures[0]["reward/model"]  # what is right is logged alone
        assert {"reward/accuracy", "heldout/accuracy"} <= set(figures[0])
        assert figures[0]["kl/ref"] == 0  # the reference is the policy as it is
        assert figures[-1]["kl/ref"] > 0
    assert [record["step"] for record in records(whole)] == [1, 2, 3]
    last = load_model(whole / "stages" / "2-policy" / "model").model.state_dict()
    left = load_model(whole / "model").model.state_dict()
    assert all(weight.equal(left[name]) for name, weight in last.items())


def test_a_share_of_earlier_pairs_is_among_those_that_are_learnt(whole: Path) -> None:
    stages = whole / "stages"
    first, second = (rows(stages / f"{i}-pairs") for i in (1, 2))
    learnt = [x[: len(x) - round(0.2 * len(x))] for x in (first, second)]  # the rest is held out
    assert rows(stages / "1-reward-model") == learnt[0]
    mix = rows(stages / "2-reward-model")
    assert mix[: len(learnt[1])] == learnt[1]
    replayed = mix[len(learnt[1]) :]
    # A quarter of the mix is a third of the new ones.
    assert len(replayed) == min(round(len(learnt[1]) / 3), len(learnt[0])) > 0
    assert set(replayed) <= set(learnt[0])


def test_the_reward_model_goes_on_from_where_it_was(whole: Path) -> None:
    one, other = (
        load_reward_model(whole / "stages" / f"{i}-reward-model" / "model").model.score.weight
        for i in (1, 2)
    )
    # Three AdamW updates of 1e-2 at most are not another random head, of deviation 1 / sqrt(17).
    assert 0 < float((one - other).detach().abs().max()) < 0.035


@pytest.mark.parametrize("stopped_in", STAGES[2:5])
def test_resumed_run_equals_one_never_stopped(stopped_in: str, whole: Path, folder: Path) -> None:
    again = whole.with_name(f"stopped-{stopped_in}")
    shutil.copytree(whole, again)
    shutil.rmtree(again / "model")
    for name in STAGES[STAGES.index(stopped_in) + 1 :]:
        shutil.rmtree(again / "stages" / name)
    stage = again / "stages" / stopped_in
    shutil.rmtree(max((stage / "checkpoints").iterdir()))
    for name in ("data.jsonl", "data.json", "marks.json"):
        (stage / name).unlink(missing_ok=True)
    run(job(folder), again, resume=True)
    for name in STAGES:
        assert records(again / "stages" / name) == records(whole / "stages" / name), name
    assert records(again) == records(whole)
    one, other = (load_model(x / "model").model.state_dict() for x in (whole, again))
    assert all(weight.equal(other[name]) for name, weight in one.items())


def test_a_reward_model_that_is_given_is_gone_on_from(folder: Path, tmp_path: Path) -> None:
    lm = load_model(folder)
    scorer = outcome_model(lm, seed=9)
    save_model(scorer.model, scorer.tokenizer, tmp_path / "scorer")
    cfg = replace(job(folder), reward_model=str(tmp_path / "scorer"), iterations=1)
    run(cfg, tmp_path / "run")
    found = load_reward_model(tmp_path / "run" / "stages" / "1-reward-model" / "model").model
    moved = (found.score.weight - scorer.model.score.weight).detach()
    assert 0 < float(moved.abs().max()) < 0.035


def test_bad_input_is_named_before_any_work(folder: Path, tmp_path: Path) -> None:
    good = job(folder)
    for name, value in (("replay", 1.0), ("replay", -0.1), ("iterations", 0), ("problems", -1)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            replace(good, **{name: value})
    for cfg, message in (
        (replace(good, task=None), "no task is given"),
        (replace(good, task=Sevens(prompts=0)), "the task has 0 prompts to train on"),
        (replace(good, task=Sevens(prompts=4)), "the task has 4 prompts .* prompts_per_step=8"),
        (replace(good, task=Sevens(form="text")), "prompts are text, .*--task.form chat"),
        (replace(good, reward_model=str(tmp_path / "none")), "there is no reward model"),
        (
            replace(good, reward_training=replace(good.reward_training, row_length=40)),
            "max_tokens=40, but reward_training.row_length=40",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            cfg.check()


def test_without_a_right_and_a_wrong_completion_the_counts_are_told(folder: Path) -> None:
    cfg = replace(job(folder), task=Never(), problems=0)
    with pytest.raises(
        UsageError, match=r"no prompt has both .*16 prompts, 16 one-sided, .*96 sampled, 0 right"
    ):
        run(cfg, None)
