from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.config import from_yaml, to_yaml
from launch.errors import UsageError
from launch.recipe import find
from launch.runtime import Runtime
from posttrain.data.tasks import Prompt, TaskMixture
from posttrain.data.tasks.mixture import MixedAnswer
from posttrain.models import load_model, save_model, tiny_model, train_tokenizer
from posttrain.recipes import r1_papers
from posttrain.recipes.r1 import everything, r1, sums
from posttrain.recipes.r1_pipeline import R1, STAGES
from posttrain.recipes.r1_stages import FilterOfTask, OfTask, Rejection
from posttrain.recipes.r1_summary import BEFORE, account, compare
from posttrain.recipes.sources import FromScratch, Pretrained
from posttrain.rewards import AnswerReward, Late, ModelSteps, Sample, WeightedSum
from posttrain.rollout import Sampling
from posttrain.trainers import GRPOConfig, ProcessSupervised


@dataclass(frozen=True)
class Lenient:
    """A mixture where whatever stops, or not, is right: an untrained model answers nothing."""

    mixture: TaskMixture

    def train(self) -> Sequence[Prompt]:
        return self.mixture.train()

    def heldout(self) -> Sequence[Prompt]:
        return self.mixture.heldout()

    def reward(self, samples: Sequence[Sample]) -> list[float]:
        return [1.0] * len(samples)


def small() -> R1:
    """The miniature with as little of everything as there can be."""
    job = r1()
    sampling = Sampling(max_tokens=12, stop_tokens=tuple(range(20, 220)))  # so that some stop

    def few(stage: Any, **changes: Any) -> Any:  # noqa: ANN401 any stage's config
        return replace(stage, training=replace(stage.training, **changes))

    grpo: dict[str, Any] = {"steps": 2, "prompts_per_step": 4, "group_size": 2, "save_every": 1}
    grpo["sampling"] = sampling
    few_outputs = replace(
        job.rejection.outputs, steps=3, prompts_per_step=4, sampling=sampling, keep=(), save_every=1
    )
    return replace(
        job,
        model=FromScratch(layers=1, width=16, heads=2, vocabulary=400, texts=200),
        student=FromScratch(layers=1, width=8, heads=2, vocabulary=400, texts=200),
        pretraining=few(job.pretraining, steps=3, documents_per_step=4),
        cold_start=replace(few(job.cold_start, steps=2, documents_per_step=4), chats=10),
        reasoning=few(job.reasoning, **grpo),
        rejection=Rejection(task=Lenient(sums()), outputs=few_outputs),
        finetuning=replace(few(job.finetuning, steps=3, documents_per_step=4), chats=10),
        preferences=replace(
            few(job.preferences, steps=2, pairs_per_step=4, heldout_every=0), last_steps=1
        ),
        scenarios=few(job.scenarios, **grpo),
        distillation=replace(
            job.distillation,
            outputs=Rejection(task=Lenient(everything()), outputs=few_outputs),
            sft=replace(job.distillation.sft, steps=2, documents_per_step=4),
            on_policy=replace(
                job.distillation.on_policy, steps=2, prompts_per_step=4, sampling=sampling
            ),
            direct=replace(job.distillation.direct, **grpo),
        ),
        evaluation=replace(job.evaluation, group_size=2, sampling=sampling),
        problems=3,
    )


def go(job: R1, output: Path | None, *, resume: bool = False) -> None:
    job.check()
    with Runtime(output=output, resume=resume, resumable=frozenset({"until"})) as run:
        job.run(run)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder).model.state_dict())


def marks(output: Path) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(output.glob("stages/*/marks.json"))
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("r1") / "whole"
    go(small(), output)
    return output


def test_every_stage_leaves_its_run_its_data_and_its_model(whole: Path) -> None:
    assert {path.name for path in (whole / "stages").iterdir()} == set(STAGES)
    for name in STAGES:
        stage = whole / "stages" / name
        assert (stage / "config.yaml").exists(), name
        assert (stage / "metrics.jsonl").exists(), name
        assert (stage / "model").is_dir() == (name != "3-rejection-sampling"), name
    for name in ("1-cold-start", "3-rejection-sampling", "4-sft", "6-distilled-sft"):
        rows = (whole / "stages" / name / "data.jsonl").read_text().splitlines()
        record = json.loads((whole / "stages" / name / "data.json").read_text())
        assert len(rows) == record["lines"] > 0
    for name in ("2-reasoning-rl", "5-all-scenarios-rl", "6-direct-rl"):
        assert len((whole / "stages" / name / "prompts.jsonl").read_text().splitlines()) == 8


def test_finetuning_starts_from_the_base_on_both_kinds_of_data(whole: Path) -> None:
    record = json.loads((whole / "stages/4-sft/data.json").read_text())
    kept = json.loads((whole / "stages/3-rejection-sampling/data.json").read_text())
    assert record["counts"] == {"reasoning": kept["lines"], "others": 10}
    rows = (whole / "stages/3-rejection-sampling/data.jsonl").read_text().splitlines()
    prompts = [json.dumps(json.loads(row)["prompt"]) for row in rows]
    assert 0 < len(rows) <= 12 * 2  # at most two of each of twelve prompts
    assert max(prompts.count(prompt) for prompt in prompts) <= 2


def test_summary_compares_every_stage_with_the_one_before_it(whole: Path) -> None:
    items = [json.loads(line) for line in (whole / "items.jsonl").read_text().splitlines()]
    tables = {item["name"]: item["rows"] for item in items if item["kind"] == "table"}
    models = [name for name in STAGES if name in BEFORE or name.endswith("base")]
    standing = tables["Every model on the same held-out problems"]
    assert [row["stage"] for row in standing] == models
    changed = tables["What each stage changed"]
    assert [row["stage"] for row in changed[::7]] == list(BEFORE)
    assert {row["verdict"] for row in changed} <= {"gain", "no gain", "loss"}
    beside = tables["Distillation against reinforcement of the same small model"]
    assert len(beside) == 7
    assert (whole / "figures" / "marks-by-stage.svg").exists()


@pytest.mark.parametrize("until", ["2-reasoning-rl", "3-rejection-sampling", "6-distilled-sft"])
def test_a_run_that_stopped_goes_on_as_if_it_never_had(
    whole: Path, until: str, tmp_path: Path
) -> None:
    go(replace(small(), until=until), tmp_path)
    assert not (tmp_path / "stages" / "6-direct-rl").exists()
    go(small(), tmp_path, resume=True)
    assert marks(tmp_path) == marks(whole)
    for name in ("5-all-scenarios-rl", "6-distilled-on-policy", "6-direct-rl"):
        folder = f"stages/{name}/model"
        torch.testing.assert_close(
            weights(tmp_path / folder), weights(whole / folder), rtol=0, atol=0
        )


def test_a_stage_that_was_cut_off_goes_on_at_its_step(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "cut"
    shutil.copytree(whole, output)
    for name in ("5-all-scenarios-rl", "6-student-base", "6-distilled-sft"):
        stage = output / "stages" / name
        (stage / "marks.json").unlink()
        shutil.rmtree(stage / "model")
    shutil.rmtree(output / "stages/5-all-scenarios-rl/checkpoints/step-00000002")
    for name in ("data.json", "data.jsonl"):  # as if it was killed before they were written
        (output / "stages/3-rejection-sampling" / name).unlink()
    go(small(), output, resume=True)
    assert marks(output) == marks(whole)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"data\.jsonl is missing"),
        (lambda path: path.write_text(path.read_text()[:-9]), r"data\.jsonl is not the file"),
    ],
)
def test_data_that_is_missing_or_cut_is_named_with_what_to_do(
    whole: Path, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    output = tmp_path / "damaged"
    shutil.copytree(whole, output)
    damage(output / "stages/3-rejection-sampling/data.jsonl")
    with pytest.raises(UsageError, match=message + r".*remove .*3-rejection-sampling, then"):
        go(small(), output, resume=True)


def test_without_a_folder_the_stages_pass_in_memory() -> None:
    go(replace(small(), until="4-sft"), None)


def test_a_model_folder_takes_the_place_of_the_base(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "base"
    lm = load_model(whole / "stages/0-base/model")
    save_model(lm.model, lm.tokenizer, folder)
    output = tmp_path / "run"
    job = replace(small(), model=Pretrained(path=str(folder)))
    go(replace(job, until="1-cold-start"), output)
    assert not (output / "stages/0-base/checkpoints").exists()
    torch.testing.assert_close(weights(output / "stages/0-base/model"), weights(folder))
    assert "Stage 6 is left out" in capsys.readouterr().out
    student = Pretrained(path=str(whole / "stages/6-student-base/model"))
    assert replace(job, student=student).distils


def test_wrong_settings_are_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="until=7: the stages are 0-base, 1-cold-start"):
        replace(small(), until="7").check()
    with pytest.raises(UsageError, match="no model is given"):
        replace(small(), model=Pretrained()).check()


def test_a_student_of_another_tokenizer_is_refused_before_any_work(
    whole: Path, tmp_path: Path
) -> None:
    other = tiny_model(train_tokenizer(["quite other words"]), layers=1, width=8, heads=2)
    save_model(other.model, other.tokenizer, tmp_path / "other")
    student = Pretrained(path=str(tmp_path / "other"))
    base = Pretrained(path=str(whole / "stages/0-base/model"))
    with pytest.raises(UsageError, match=r"the student .*other has a tokenizer of"):
        replace(small(), model=base, student=student).check()
    with pytest.raises(UsageError, match="give --model FOLDER as well"):
        replace(small(), student=student).check()


def test_nothing_kept_is_an_error_that_counts_why(tmp_path: Path) -> None:
    job = replace(small(), rejection=replace(small().rejection, task=sums()))
    with pytest.raises(
        UsageError, match=r"none of the teacher's completions was kept \(48 sampled"
    ):
        go(replace(job, until="3-rejection-sampling"), tmp_path)


def test_config_survives_yaml() -> None:
    assert to_yaml(from_yaml(to_yaml(r1()), r1())) == to_yaml(r1())


def test_a_reward_or_filter_of_one_task_leaves_the_others_alone() -> None:
    def sample(task: str, text: str) -> Sample:
        return Sample(prompt="", completion=text, answer=MixedAnswer("4", task))

    samples = [sample("a", "<answer>4</answer>"), sample("b", "<answer>4</answer>")]
    assert OfTask("a", AnswerReward())(samples).tolist() == [1.0, 0.0]
    assert OfTask("c", AnswerReward())(samples).tolist() == [0.0, 0.0]

    class Never:
        reason = "never"

        def __call__(self, sample: Sample, /) -> bool:
            return False

    keep = FilterOfTask("a", Never())
    assert keep.reason == "never"
    assert [keep(sample) for sample in samples] == [False, True]


def test_account_says_no_gain_where_there_is_none() -> None:
    zeros, ones = torch.zeros(9), torch.ones(9)
    found = compare({"0-base": {"x": zeros, "y": ones}, "1-cold-start": {"x": ones, "y": ones}})
    text = account(found)
    assert "1-cold-start, against 0-base: gained x +1.000; no gain in y." in text


def test_paper_recipes_have_the_published_settings() -> None:
    zero = r1_papers.r1_zero_paper()
    assert (zero.steps, zero.prompts_per_step, zero.group_size) == (10_400, 32, 16)
    assert (zero.minibatches, zero.refresh_every) == (16, 400)
    assert zero.max_tokens_after == {8_200: 65_536}
    assert isinstance(zero.reward, WeightedSum)
    assert [weight for weight, _ in zero.reward.rewards.values()] == [1.0, 1.0]
    stage1 = r1_papers.r1_stage1_paper()
    assert stage1.max_tokens_after == {}
    assert isinstance(stage1.reward, WeightedSum)
    assert "language" in stage1.reward.rewards
    sft = r1_papers.r1_sft_paper()
    assert (sft.documents_per_step, sft.row_length, sft.epochs) == (128, 32_768, 2.0)
    assert sft.optimizer.learning_rate * sft.schedule(1, 1) == pytest.approx(5e-6)
    stage2 = r1_papers.r1_stage2_paper()
    assert (stage2.steps, stage2.sampling.temperature) == (1_700, 0.7)
    assert isinstance(stage2.reward, Late)
    assert stage2.reward.after == 1_700 - 400
    helpful = r1_papers.r1_helpfulness_paper()
    assert (helpful.pairs_per_step, helpful.row_length) == (256, 8_192)
    rates = [
        getattr(r1_papers, name)().optimizer.learning_rate
        for name in ("r1_distill_paper", "r1_distill_7b_paper", "r1_distill_32b_paper",
                     "r1_distill_70b_paper")
    ]  # fmt: skip
    assert rates == [1e-4, 8e-5, 6e-5, 2e-5]
    math = r1_papers.grpo_deepseekmath_paper()
    assert (math.group_size, math.prompts_per_step, math.sampling.max_tokens) == (64, 16, 1_024)
    process = r1_papers.grpo_deepseekmath_process_paper()
    assert process.advantages == ProcessSupervised(steps=ModelSteps(""), eps=0.0)
    assert replace(process, advantages=math.advantages) == math  # all else is as it was
    turns = r1_papers.grpo_deepseekmath_iterative_paper()
    assert (turns.iterations, turns.replay) == (2, 0.1)
    assert turns.reward_training.optimizer.learning_rate == 2e-5
    for field in fields(GRPOConfig):
        assert getattr(turns.policy, field.name) == getattr(math, field.name)


@pytest.mark.parametrize("name", r1_papers.__all__)
def test_paper_recipes_are_listed_and_survive_yaml(name: str) -> None:
    job = find(name).load()
    assert to_yaml(from_yaml(to_yaml(job), job)) == to_yaml(job)
    with pytest.raises(UsageError, match="--model FOLDER"):
        job.check()
