"""Each recipe learns: its score moves beyond noise within seconds."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pytest

from launch.optimizers import AdamW
from launch.runtime import Runtime
from posttrain.critics import SecondModel, TwoModels
from posttrain.data.tasks import BackwardLetters
from posttrain.models import load_model, save_model
from posttrain.objectives import (
    CISPO,
    DPO,
    GSPO,
    IPO,
    KTO,
    ORPO,
    Objective,
    PolicyGradient,
    PreferenceObjective,
    SimPO,
)
from posttrain.process_reward_models import load_process_reward_model
from posttrain.recipes import tiny
from posttrain.recipes.actor_critic_job import ActorCriticJob
from posttrain.recipes.distill_job import DistillJob
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.iterative import IterativeGRPO
from posttrain.recipes.jobs import GRPOJob, PreferenceJob, SFTJob, WarmUp
from posttrain.recipes.manners import Manners
from posttrain.recipes.r1_mini import R1Mini
from posttrain.recipes.reward_jobs import ProcessRewardJob, RewardModelJob
from posttrain.recipes.sources import FromScratch, Pretrained, RawLines, WorkedSums
from posttrain.recipes.step_sources import RolledOutSums
from posttrain.recipes.toy import objective_toy
from posttrain.reward_models import load_reward_model
from posttrain.rollout import Sampling
from posttrain.trainers import GroupRelative, LeaveOneOut, MaxRL
from posttrain.trainers.advantages import Advantages

Job = (
    SFTJob
    | GRPOJob
    | IterativeGRPO
    | ActorCriticJob
    | PreferenceJob
    | RewardModelJob
    | ProcessRewardJob
    | DistillJob
    | R1Mini
)


def run(job: Job, output: Path) -> list[dict[str, float]]:
    job.check()
    with Runtime(job.runtime, output=output, seed=job.seed) as runtime:
        job.run(runtime)
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def small(job: R1Mini) -> R1Mini:
    """Return the same job on sums of three terms, with a smaller model and fewer steps."""
    assert isinstance(job.demonstrations, WorkedSums | RawLines)
    options = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
    task = replace(job.task, options=options, heldout_size=64)  # type: ignore[type-var]  # ReasoningGym
    longer = replace(job.longer, options=options | {"max_terms": 4}, heldout_size=16)  # type: ignore[type-var]  # ReasoningGym
    grpo = replace(
        job.grpo,
        steps=40,
        prompts_per_step=12,
        optimizer=AdamW(learning_rate=1e-3, eps=1e-6),
        sampling=Sampling(max_tokens=40),
    )
    return replace(
        job,
        task=task,
        longer=longer,
        demonstrations=replace(job.demonstrations, task=task),
        model=FromScratch(layers=2, width=64, heads=4, texts=300),
        cold_start=replace(job.cold_start, steps=400, save_every=0),
        grpo=grpo,
        evaluation=Evaluator(group_size=8, sampling=Sampling(max_tokens=40)),
        problems=48,
        probes=16,
    )


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    """Return grpo-mini's model after its warm-up, with which two other recipes begin."""
    place, job = tmp_path_factory.mktemp("taught"), tiny.grpo_mini()
    assert job.warm_up is not None
    lm = job.model.load(job.warm_up.data.texts(2_000), job.seed)
    with Runtime(job.runtime, output=place / "run", seed=job.seed) as runtime:
        job.warm_up.run(lm, runtime, job.seed)
    save_model(lm.model, lm.tokenizer, place / "model")
    return Pretrained(path=str(place / "model"))


Taught = TypeVar("Taught", ActorCriticJob, IterativeGRPO)


def begun(job: Taught, taught: Pretrained) -> Taught:
    """Return the same job, of which model and warm-up are grpo-mini's, after that warm-up."""
    of = tiny.grpo_mini()
    assert (job.model, job.warm_up) == (of.model, of.warm_up)
    return replace(job, model=taught, warm_up=None)


def test_sft_mini_learns(tmp_path: Path) -> None:
    records = run(tiny.sft_mini(), tmp_path / "run")
    losses = [record["loss"] for record in records]
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]


def test_grpo_mini_learns(tmp_path: Path) -> None:
    job = tiny.grpo_mini()
    records = run(job, tmp_path / "run")
    rewards = [record["reward/accuracy"] for record in records]
    first, last = sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3
    rows = 3 * job.prompts_per_step * job.group_size
    deviation = (first * (1 - first) / rows + last * (1 - last) / rows) ** 0.5
    assert last - first > 3 * deviation


def test_ppo_llm_mini_learns_and_leaves_policy_and_critic(
    taught: Pretrained, tmp_path: Path
) -> None:
    job = begun(tiny.ppo_llm_mini(), taught)
    records = run(job, tmp_path / "run")
    rewards = [record["reward/accuracy"] for record in records]
    rows = job.prompts_per_step * job.group_size
    first, last = rewards[0], sum(rewards[-3:]) / 3  # the first is drawn before any update
    deviation = (first * (1 - first) / rows + last * (1 - last) / (3 * rows)) ** 0.5
    assert last - first > 3 * deviation
    assert records[0]["value/mean"] == 0
    assert abs(records[-1]["value/mean"] - records[-1]["value/returns"]) < 0.2
    lm = load_model(tmp_path / "run" / "model")
    pair = SecondModel(path=str(tmp_path / "run" / "critic")).build(lm)
    assert isinstance(pair, TwoModels)
    assert pair.critic.head.weight.any()


def test_iterative_grpo_mini_learns_from_its_reward_model_alone(
    taught: Pretrained, tmp_path: Path
) -> None:
    job = begun(tiny.iterative_grpo_mini(), taught)
    marks = [record["heldout/accuracy"] for record in run(job, tmp_path / "run")]
    assert len(marks) == 1 + job.iterations
    deviations = [(x * (1 - x) / job.problems) ** 0.5 for x in marks]  # of two completions: less
    assert marks[1] - marks[0] > 2 * (deviations[0] ** 2 + deviations[1] ** 2) ** 0.5
    assert marks[-1] - marks[0] > 3 * (deviations[0] ** 2 + deviations[-1] ** 2) ** 0.5
    for i in (1, 2):
        lines = (tmp_path / "run" / f"stages/{i}-reward-model/metrics.jsonl").read_text()
        looks = [json.loads(line) for line in lines.splitlines()]
        assert looks[-1]["accuracy"] > 0.6  # of 32 pairs


def test_tool_mini_learns_to_call(tmp_path: Path) -> None:
    # Without the tool no reward is ever paid: see the recipe.
    job = tiny.tool_mini()
    assert job.warm_up is not None
    job = replace(
        job, warm_up=replace(job.warm_up, training=replace(job.warm_up.training, steps=220))
    )
    records = run(job, tmp_path / "run")
    calls, rewards = ([r[name] for r in records] for name in ("tools/calls", "reward/accuracy"))
    for figures in (calls, rewards):
        first, last = sum(figures[:3]) / 3, sum(figures[-3:]) / 3
        rows = 3 * job.prompts_per_step * job.group_size
        deviation = (first * (1 - first) / rows + last * (1 - last) / rows) ** 0.5
        assert last - first > 3 * deviation
    assert min(calls[-3:]) > 0.9


@pytest.mark.parametrize(
    ("objective", "advantages"),
    [(GSPO(), GroupRelative()), (PolicyGradient(), LeaveOneOut()), (CISPO(), MaxRL())],
)
def test_objective_toy_learns(objective: Objective, advantages: Advantages, tmp_path: Path) -> None:
    task = BackwardLetters(length=3, letters="abcde")
    job = objective_toy()
    assert job.warm_up is not None
    job = replace(
        job,
        task=task,
        warm_up=WarmUp(data=Manners(task=task), training=replace(job.warm_up.training, steps=80)),
        objective=objective,
        advantages=advantages,
        updates_per_rollout=1,
        steps=60,
        evaluation=replace(job.evaluation, group_size=16),
    )
    before, after = run(job, tmp_path / "run")
    first, last = before["pass@1"], after["pass@1"]
    drawn = len(task.heldout()) * job.evaluation.group_size
    deviation = (first * (1 - first) / drawn + last * (1 - last) / drawn) ** 0.5
    assert last - first > 3 * deviation + 0.1
    load_model(tmp_path / "run" / "model")


@pytest.mark.parametrize("objective", [DPO(), IPO(), SimPO(), ORPO(), KTO()])
def test_dpo_mini_learns(objective: PreferenceObjective, tmp_path: Path) -> None:
    job = replace(tiny.dpo_mini(), objective=objective)
    assert job.warm_up is not None
    job = replace(
        job, warm_up=replace(job.warm_up, training=replace(job.warm_up.training, steps=40))
    )
    looks = [r for r in run(job, tmp_path / "run") if "heldout/ranking" in r]
    assert len(looks) == 5
    # Which of the two the model itself finds likelier: the warm-up taught it to be mostly curt.
    first, last = looks[0]["heldout/ranking"], looks[-1]["heldout/ranking"]
    deviation = (first * (1 - first) / 128 + last * (1 - last) / 128) ** 0.5
    assert last - first > 3 * deviation + 0.1
    assert looks[-1]["heldout/accuracy"] > 0.9
    load_model(tmp_path / "run" / "model")


def test_reward_model_mini_learns(tmp_path: Path) -> None:
    job = replace(tiny.reward_model_mini(), heldout_every=80)
    looks = [r for r in run(job, tmp_path / "run") if "heldout/accuracy" in r]
    first, last = looks[0]["heldout/accuracy"], looks[-1]["heldout/accuracy"]
    deviation = (first * (1 - first) / 256 + last * (1 - last) / 256) ** 0.5
    assert last - first > 3 * deviation
    assert looks[-1]["heldout/loss"] < looks[0]["heldout/loss"]
    load_reward_model(tmp_path / "run" / "model")


def test_distill_mini_learns(tmp_path: Path) -> None:
    job = tiny.distill_mini()
    teacher, *student = (record["pass@1"] for record in run(job, tmp_path / "run"))
    assert teacher > 0.7
    rows = job.problems * job.evaluation.group_size
    for before, after in pairwise(student):  # by SFT, then on-policy
        deviation = (before * (1 - before) / rows + after * (1 - after) / rows) ** 0.5
        assert after - before > 2 * deviation
    lines = (tmp_path / "run" / "stages" / "3-on-policy" / "metrics.jsonl").read_text()
    divergences = [json.loads(line)["kl"] for line in lines.splitlines()]
    assert sum(divergences[-10:]) < 0.7 * sum(divergences[:10])


def test_prm_mini_tells_right_steps_from_wrong_ones(tmp_path: Path) -> None:
    job = tiny.prm_mini()
    assert isinstance(job.data, RolledOutSums)
    run(replace(job, data=replace(job.data, problems=300), steps=40), tmp_path / "run")
    items = [json.loads(x) for x in (tmp_path / "run" / "items.jsonl").read_text().splitlines()]
    [rows] = [item["rows"] for item in items if item["name"] == "Held-out steps"]
    lows = [float(row["AUC"].partition("[")[2].partition(",")[0]) for row in rows]
    assert [row["labels"] for row in rows] == ["its labels", "the truth", "the truth"]
    assert lows[0] > 0.6
    assert lows[1] > 0.6
    assert lows[2] > 0.85  # the labels of rollouts themselves
    load_process_reward_model(tmp_path / "run" / "model")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [tiny.r1_mini, tiny.r1_zero_mini])
def test_r1_mini_learns_to_reason(recipe: object, tmp_path: Path) -> None:
    job = small(recipe())  # type: ignore[operator]  # a recipe
    before, after = run(job, tmp_path / "run")
    assert after["pass@1"] > before["pass@1"] + 0.1
    assert after["share/reasoning"] > before["share/reasoning"] + 0.2
    assert load_model(tmp_path / "run" / "model").stop_tokens
    items = (tmp_path / "run" / "items.jsonl").read_text()
    for name in ("What reinforcement learning did", "Accuracy and length", "before and after"):
        assert name in items


@pytest.mark.slow
def test_control_reasons_from_the_start(tmp_path: Path) -> None:
    before, after = run(small(tiny.r1_mini_control()), tmp_path / "run")
    assert before["share/reasoning"] > 0.9
    assert after["share/reasoning"] > 0.9
