import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from launch.errors import UsageError
from launch.optimizers import AdamW
from launch.runtime import Runtime, RuntimeConfig
from launch.schedule import Constant
from posttrain.data.chat import encode_prompt
from posttrain.data.order import shuffled
from posttrain.data.tasks import Arithmetic
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.objectives import (
    GRPO,
    DistillObjective,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SampledReverseKL,
)
from posttrain.rollout import Engine, Sampling
from posttrain.trainers import DistillConfig, train_on_policy_distillation

TASK = Arithmetic()
TEXTS = [f"{prompt.text}{prompt.answer}" for prompt in TASK.train()]
CONFIG = DistillConfig(
    steps=4,
    prompts_per_step=10,
    sampling=Sampling(max_tokens=6),
    optimizer=AdamW(learning_rate=1e-2),
    schedule=Constant(),
    samples_every=2,
)
OBJECTIVES: dict[str, DistillObjective | SampledReverseKL] = {
    "reverse": ReverseKL(),
    "forward": ForwardKL(),
    "jensen-shannon": JensenShannon(0.3),
    "sampled": SampledReverseKL(),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


@pytest.fixture(scope="module")
def student() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=60), layers=1, width=16, heads=2, seed=1)


@pytest.fixture(scope="module")
def teacher(student: LanguageModel) -> LanguageModel:
    lm = tiny_model(student.tokenizer, layers=2, width=32, heads=2, seed=2)
    with torch.no_grad():  # sharper than at the start of training, so that there is much to learn
        for parameter in lm.model.parameters():
            parameter.mul_(2)
    return lm


def train(
    cfg: DistillConfig,
    student: LanguageModel,
    teacher: LanguageModel,
    output: Path | None = None,
    *,
    resume: bool = False,
) -> nn.Module:
    lm = replace(student, model=copy.deepcopy(student.model))
    with Runtime(output=output, seed=2, resume=resume) as run:
        train_on_policy_distillation(cfg, lm, teacher, TASK.train(), run, reward=TASK.reward)
    return lm.model


def records(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "speed/")
    return [{k: v for k, v in line.items() if not k.startswith(clock)} for line in lines]


@every_objective
def test_student_comes_closer_to_the_teacher(
    objective: DistillObjective | SampledReverseKL,
    student: LanguageModel,
    teacher: LanguageModel,
    tmp_path: Path,
) -> None:
    cfg = replace(CONFIG, objective=objective, steps=40, prompts_per_step=32, group_size=4)
    before = copy.deepcopy(teacher.model.state_dict())
    train(cfg, student, teacher, tmp_path / "run")
    found = records(tmp_path / "run")
    first, last = (sum(x["kl"] for x in some) / 5 for some in (found[:5], found[-5:]))
    assert last < 0.5 * first
    assert all(weight.equal(before[name]) for name, weight in teacher.model.state_dict().items())
    assert {"reward", "length/mean", "entropy", "learning_rate"} <= found[0].keys()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_first_loss_is_the_divergence_of_the_students_own_samples(
    precision: Literal["fp32", "bf16"],
    student: LanguageModel,
    teacher: LanguageModel,
    tmp_path: Path,
) -> None:
    cfg = replace(CONFIG, steps=1, objective=ForwardKL(), group_size=2, micro_batch=3)
    lm = replace(student, model=copy.deepcopy(student.model))
    with Runtime(RuntimeConfig(precision=precision), output=tmp_path / "run", seed=2) as run:
        train_on_policy_distillation(cfg, lm, teacher, TASK.train()[:10], run)
        seeds = run.seeds("rollout", 0, range(10))
    (record,) = records(tmp_path / "run")
    total = {"loss": 0.0, "kl": 0.0, "entropy": 0.0}
    count = 0
    order = shuffled(10, 0, 10, 2)
    sampling = replace(cfg.sampling, stop_tokens=student.stop_tokens)
    for index, seed in zip(order, seeds, strict=True):  # one by one, transformers' own forward
        prompt = encode_prompt(student.tokenizer, TASK.train()[index])
        rollout = Engine(student.model).generate([prompt], sampling, 2, seeds=[seed])
        for completion in rollout.completions():
            tokens = torch.tensor([prompt + completion])
            wanted = slice(len(prompt) - 1, tokens.shape[1] - 1)
            with torch.no_grad():
                log_p, log_q = (
                    m.model(tokens).logits[0, wanted].log_softmax(-1) for m in (student, teacher)
                )
            total["loss"] += (log_q.exp() * (log_q - log_p)).sum().item()
            total["kl"] += (log_p.exp() * (log_p - log_q)).sum().item()
            total["entropy"] -= (log_p.exp() * log_p).sum().item()
            count += len(completion)
    close = 1e-4 if precision == "fp32" else 2e-2
    for name, value in total.items():
        assert record[name] == pytest.approx(value / count, rel=close), name
    assert "reward" not in record


@every_objective
@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 4}])
def test_micro_batches_change_nothing(
    objective: DistillObjective | SampledReverseKL,
    changes: dict[str, int],
    student: LanguageModel,
    teacher: LanguageModel,
) -> None:
    cfg = replace(CONFIG, objective=objective, steps=2)
    whole = train(cfg, student, teacher)
    other = train(replace(cfg, **changes), student, teacher)
    torch.testing.assert_close(other.state_dict(), whole.state_dict(), rtol=1e-4, atol=2e-5)


def test_sampled_form_logs_the_reverse_kl_of_its_samples(
    student: LanguageModel, teacher: LanguageModel, tmp_path: Path
) -> None:
    cfg = replace(CONFIG, steps=1, prompts_per_step=64, group_size=8)
    train(cfg, student, teacher, tmp_path / "exact")
    train(replace(cfg, objective=SampledReverseKL()), student, teacher, tmp_path / "sampled")
    (exact,), (sampled,) = records(tmp_path / "exact"), records(tmp_path / "sampled")
    assert exact["loss"] == pytest.approx(exact["kl"])
    # On-policy all ratios are 1: the loss is minus the mean advantage, which is the sampled KL.
    assert sampled["loss"] == pytest.approx(sampled["kl"], rel=1e-5)
    assert sampled["entropy"] == pytest.approx(exact["entropy"])
    # 512 completions of a few tokens, whose log-ratios spread by about 0.5 nats: 0.01.
    assert sampled["kl"] == pytest.approx(exact["kl"], abs=0.05)
    assert exact["kl"] > 0.1


@every_objective
def test_resumed_training_equals_one_never_stopped(
    objective: DistillObjective | SampledReverseKL,
    student: LanguageModel,
    teacher: LanguageModel,
    tmp_path: Path,
) -> None:
    cfg = replace(CONFIG, objective=objective, steps=4, save_every=2)
    whole = train(cfg, student, teacher, tmp_path / "run")
    expected = records(tmp_path / "run")
    samples = (tmp_path / "run" / "samples.jsonl").read_text()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    resumed = train(cfg, student, teacher, tmp_path / "run", resume=True)
    assert records(tmp_path / "run") == expected
    assert (tmp_path / "run" / "samples.jsonl").read_text() == samples
    for name, weight in whole.state_dict().items():
        assert weight.equal(resumed.state_dict()[name]), name


def test_teacher_that_speaks_other_tokens_is_named(
    student: LanguageModel, teacher: LanguageModel
) -> None:
    other = tiny_model(train_tokenizer(TEXTS[:40], vocabulary=50), layers=1, width=16, heads=2)
    other.model.config.name_or_path = "folder/teacher"
    sizes = len(student.tokenizer), len(other.tokenizer)
    said = rf"a tokenizer of {sizes[0]} tokens and the teacher folder/teacher .* of {sizes[1]}"
    with pytest.raises(UsageError, match=said):
        train(CONFIG, student, other)
    padded = replace(teacher, model=copy.deepcopy(teacher.model))
    padded.model.resize_token_embeddings(len(teacher.tokenizer) + 4)
    with pytest.raises(UsageError, match=r"logits of \d+ tokens .*SampledReverseKL"):
        train(CONFIG, student, padded)
    train(replace(CONFIG, steps=1, objective=SampledReverseKL()), student, padded)


def test_too_few_prompts_are_named(student: LanguageModel, teacher: LanguageModel) -> None:
    with pytest.raises(UsageError, match="80 prompts to train on, but prompts_per_step=81"):
        train(replace(CONFIG, prompts_per_step=81), student, teacher)


@pytest.mark.parametrize("name", ["steps", "prompts_per_step", "group_size", "micro_batch"])
def test_config_refuses_counts_below_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        replace(CONFIG, **{name: 0})


def test_config_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="objective is GRPO, which compares no two models"):
        replace(CONFIG, objective=GRPO())
    with pytest.raises(ValueError, match="temperature=0"):
        replace(CONFIG, sampling=Sampling(max_tokens=2, temperature=0))
    cut = Sampling(max_tokens=2, top_k=3)
    assert replace(CONFIG, sampling=cut).sampling.top_k == 3
    with pytest.raises(ValueError, match=r"sampling.top_k=3.* the sampled form needs tokens"):
        replace(CONFIG, sampling=cut, objective=SampledReverseKL())
