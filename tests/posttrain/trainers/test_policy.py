import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.config import override
from launch.errors import UsageError
from launch.optimizers import AdamW
from launch.runtime import Runtime
from posttrain.data.tasks import Prompt
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.objectives import (
    CISPO,
    DAPO,
    GMPO,
    GRPO,
    GSPO,
    LUSPO,
    SAPO,
    ClipCov,
    DrGRPO,
    IcePop,
    KLCov,
    PolicyGradient,
    TruncatedImportance,
)
from posttrain.objectives.base import Objective
from posttrain.rewards import Sample
from posttrain.rollout import Rollout, Sampling
from posttrain.trainers import (
    BatchRelative,
    GRPOConfig,
    LeaveOneOut,
    MaxRL,
    ProcessSupervised,
    ReinforcePlusPlus,
    train_grpo,
)
from posttrain.trainers.advantages import Advantages
from posttrain.trainers.collection import Collected
from posttrain.trainers.policy import divergences, with_advantages
from posttrain.trainers.rollouts import FlatGroups, as_batch, rollout_figures, trained_mask
from posttrain.trainers.updates import prompt_lengths

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]


@pytest.fixture(scope="module")
def made() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=1, width=16, heads=2, seed=1)


@pytest.fixture
def lm(made: LanguageModel) -> LanguageModel:
    return replace(made, model=copy.deepcopy(made.model))


def sevens(samples: Sequence[Sample]) -> list[float]:
    return [sample.completion.count("7") / 4 for sample in samples]


def remainders(samples: Sequence[Sample]) -> list[float]:
    return [sum(sample.tokens) % 5 / 5 for sample in samples]


@dataclass
class Words:
    reward: object = sevens
    count: int = 8
    seen: list[str] = field(default_factory=list)

    def train(self) -> list[Prompt]:
        return [Prompt(text=f"{i} plus {i + 1} is", answer="7") for i in range(self.count)]

    def heldout(self) -> list[Prompt]:
        return []


CONFIG = GRPOConfig(
    steps=3,
    prompts_per_step=4,
    group_size=4,
    sampling=Sampling(max_tokens=6),
    optimizer=AdamW(learning_rate=1e-2),
    samples_every=0,
)


def train(cfg: GRPOConfig, lm: LanguageModel, output: Path | None = None) -> list[dict[str, float]]:
    with Runtime(output=output, seed=5) as run:
        train_grpo(cfg, lm, Words(), run)
    if output is None:
        return []
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in lm.model.state_dict().items()}


def test_train_grpo_raises_a_reward_that_can_be_raised(lm: LanguageModel, tmp_path: Path) -> None:
    cfg = replace(CONFIG, steps=30, prompts_per_step=8, group_size=8)
    rewards = [record["reward"] for record in train(cfg, lm, tmp_path / "run")]
    assert sum(rewards[-5:]) / 5 > 3 * sum(rewards[:5]) / 5


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_truncated_completions_are_left_out_in_groups_and_alone(
    made: LanguageModel, micro_batch: int, tmp_path: Path
) -> None:
    # Where a whole group is cut off, or its first row alone, the prompt's length is still right.
    stops = Sampling(max_tokens=6, stop_tokens=tuple(range(10, 16)))
    cfg = replace(CONFIG, steps=1, sampling=stops, mask_truncated=True)
    lms = {}
    for name, changes in (
        ("whole", {}),
        ("parts", {"micro_batch": micro_batch}),
        ("plain", {"mask_truncated": False}),
    ):
        lms[name] = replace(made, model=copy.deepcopy(made.model))
        with Runtime(output=tmp_path / name, seed=5) as run:
            train_grpo(replace(cfg, **changes), lms[name], Words(reward=remainders), run)
    record = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text())
    assert 0.2 < record["length/truncated"] < 0.8
    whole, parts, plain = (weights(lm) for lm in lms.values())
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=2e-5)
    assert not all(torch.equal(x, plain[name]) for name, x in whole.items())


def test_where_every_completion_is_cut_off_nothing_is_learnt(lm: LanguageModel) -> None:
    before = weights(lm)
    never = Sampling(max_tokens=3, stop_tokens=(10**6,))
    with Runtime(seed=5) as run:
        cfg = replace(CONFIG, steps=1, sampling=never, mask_truncated=True)
        train_grpo(cfg, lm, Words(reward=remainders), run)
    torch.testing.assert_close(weights(lm), before, rtol=0, atol=0)


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 8, 16])
def test_micro_batch_changes_nothing(made: LanguageModel, micro_batch: int) -> None:
    whole, parts = (replace(made, model=copy.deepcopy(made.model)) for _ in range(2))
    train(CONFIG, whole)
    train(replace(CONFIG, micro_batch=micro_batch), parts)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "objective",
    [GRPO(), DAPO(), DrGRPO(max_length=6), GRPO(kl_weight=0.5)],
    ids=["grpo", "dapo", "dr", "kl"],
)
def test_first_gradient_is_the_policy_gradient_of_the_groups(
    made: LanguageModel, objective: Objective, tmp_path: Path
) -> None:
    # At ratio 1 every clipped surrogate has the gradient of A log p, and KL(p || p) has none.
    cfg = replace(CONFIG, steps=1, objective=objective, optimizer=AdamW(learning_rate=0.0))
    (record,) = train(cfg, replace(made, model=copy.deepcopy(made.model)), tmp_path / "run")
    assert record["ratio/mean"] == 1.0
    assert record["clip_fraction"] == 0.0
    assert record["loss"] == pytest.approx(0.0, abs=1.0)
    assert record["grad_norm"] > 0
    assert record["mismatch"] < 1e-4


def test_two_updates_of_a_rollout_leave_the_old_policy_where_it_was(
    lm: LanguageModel, tmp_path: Path
) -> None:
    cfg = replace(CONFIG, steps=1, updates_per_rollout=3)
    (record,) = train(cfg, lm, tmp_path / "run")
    assert record["ratio/p99"] > 1.0
    assert record["kl/old"] > 0


@pytest.mark.parametrize(
    "objective",
    [CISPO(), GMPO(), GSPO(), LUSPO(), SAPO(), PolicyGradient(), ClipCov(cov_low=0.0), KLCov()],
    ids=lambda objective: type(objective).__name__,
)
def test_every_objective_trains_and_micro_batches_do_not_change_it(
    made: LanguageModel, objective: Objective
) -> None:
    cfg = replace(CONFIG, steps=1, updates_per_rollout=2, objective=objective)
    whole, parts = (replace(made, model=copy.deepcopy(made.model)) for _ in range(2))
    train(cfg, whole)
    train(replace(cfg, micro_batch=3), parts)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=2e-5)
    assert not all(torch.equal(x, weights(made)[name]) for name, x in weights(whole).items())


@pytest.mark.parametrize(
    ("changes", "near_zero"),
    [
        ({}, True),
        ({"advantages": LeaveOneOut()}, True),
        ({"objective": DAPO()}, False),
        ({"objective": DrGRPO(max_length=6)}, False),
        ({"objective": GRPO(kl_weight=0.5)}, False),
        ({"updates_per_rollout": 2}, False),
        ({"mask_truncated": True}, False),
    ],
    ids=lambda value: re.sub(r" at 0x[0-9a-f]+", "", str(value)),
)
def test_loss_is_called_near_zero_where_it_is_so(
    made: LanguageModel,
    changes: dict[str, Any],
    near_zero: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = train(
        replace(CONFIG, **changes), replace(made, model=copy.deepcopy(made.model)), tmp_path / "run"
    )
    assert ("near zero by construction" in capsys.readouterr().out) == near_zero
    assert (max(abs(record["loss"]) for record in records) < 1e-6) == near_zero


def test_a_class_of_ours_is_named_in_full_where_its_name_alone_is_given() -> None:
    with pytest.raises(UsageError, match=r"did you mean posttrain\.objectives:DAPO\?"):
        override(GRPOConfig(), {"objective": "DAPO"})


def test_equal_rewards_change_no_weight(lm: LanguageModel) -> None:
    before = weights(lm)
    with Runtime() as run:
        train_grpo(CONFIG, lm, Words(reward=lambda samples: [1.0] * len(samples)), run)
    torch.testing.assert_close(weights(lm), before, rtol=0, atol=0)


def test_sample_rows_and_figures_are_logged(lm: LanguageModel, tmp_path: Path) -> None:
    cfg = replace(CONFIG, advantages=LeaveOneOut(), samples_every=2)
    records = train(cfg, lm, tmp_path / "run")
    expected = {"reward", "groups/flat", "length/mean", "length/truncated", "entropy", "loss"}
    expected |= {"grad_norm", "learning_rate", "clip_fraction", "ratio/p50", "speed/tokens"}
    expected |= {"seconds/generate", "seconds/reward", "seconds/update", "share/reasoning"}
    assert expected <= records[0].keys()
    samples = [json.loads(x) for x in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [1] * 4 + [2] * 4


@pytest.mark.parametrize(
    "advantages",
    [BatchRelative(), MaxRL(), ReinforcePlusPlus()],
    ids=lambda advantages: type(advantages).__name__,
)
def test_advantages_of_other_kinds_train(lm: LanguageModel, advantages: Advantages) -> None:
    before = weights(lm)
    train(replace(CONFIG, steps=1, advantages=advantages), lm)
    assert not all(torch.equal(x, before[name]) for name, x in weights(lm).items())


@dataclass
class Half:
    def __call__(
        self, old_log_probs: torch.Tensor, engine_log_probs: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        return torch.where(mask, 0.5, 0.0)


def test_mismatch_weighs_the_gains_and_is_logged(made: LanguageModel, tmp_path: Path) -> None:
    norms = []
    for name, mismatch in (
        ("none", None),
        ("agrees", TruncatedImportance(2.0)),
        ("half", Half()),
        ("far", IcePop(1.0, 1.0)),
    ):
        cfg = replace(CONFIG, steps=1, mismatch=mismatch, max_grad_norm=1e9)
        lm = replace(made, model=copy.deepcopy(made.model))
        (record,) = train(cfg, lm, tmp_path / name)
        assert record["mismatch"] < 1e-4
        assert 0 <= record["mismatch/kl"] < 1e-6
        norms.append(record["grad_norm"])
        if mismatch is None:
            assert "mismatch/weight" not in record
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert norms[2] == pytest.approx(norms[0] / 2, rel=1e-3)
    # Ratios that differ from 1 by rounding are left out, and counted.
    assert record["mismatch/weight"] == pytest.approx(1 - record["mismatch/left_out"])


def test_model_is_in_the_mode_it_was_in(lm: LanguageModel) -> None:
    lm.model.eval()
    train(replace(CONFIG, steps=1), lm)
    assert not lm.model.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size=1: a group of one has no baseline"),
        ({"steps": 0}, "steps=0: give at least 1"),
        ({"micro_batch": 0}, "micro_batch=0"),
        ({"kl_in_reward": -0.1}, "kl_in_reward=-0.1"),
        ({"sampling": Sampling(max_tokens=4, temperature=0.0)}, r"sampling\.temperature=0"),
        ({"sampling": Sampling(max_tokens=4, top_k=5)}, r"sampling\.top_k=5.*off-policy"),
        ({"sampling": Sampling(max_tokens=4, top_p=0.9)}, "allow_off_policy_sampling"),
    ],
)
def test_config_refuses_what_cannot_train(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_cut_sampling_is_allowed_by_name() -> None:
    sampling = Sampling(max_tokens=4, top_k=5)
    assert replace(CONFIG, sampling=sampling, allow_off_policy_sampling=True).sampling == sampling


def test_task_with_too_few_prompts_is_an_error(lm: LanguageModel) -> None:
    with Runtime() as run, pytest.raises(UsageError, match=r"3 prompts .* prompts_per_step=4"):
        train_grpo(CONFIG, lm, Words(count=3), run)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda samples: [1.0], r"shape \(1,\) for 16 samples"),
        (lambda samples: [float("nan")] * len(samples), "nan"),
        (lambda samples: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_broken_reward_is_named(lm: LanguageModel, reward: object, message: str) -> None:
    with Runtime() as run, pytest.raises(UsageError, match=message):
        train_grpo(CONFIG, lm, Words(reward=reward), run)


def test_flat_groups_warn_once_after_many_steps() -> None:
    flat = FlatGroups(patience=3)
    for share in (1.0, 1.0, 0.5, 1.0, 1.0):
        flat.see(share, 0.0)
    with pytest.warns(RuntimeWarning, match="for 3 steps every group had equal rewards"):
        flat.see(1.0, 0.0)
    flat.see(1.0, 0.0)


def rollout() -> Rollout:
    mask = torch.tensor([[False, True, True], [False, True, False]])
    zeros = torch.zeros(2, 3)
    return Rollout(
        tokens=torch.tensor([[1, 2, 3], [1, 2, 0]]),
        mask=mask,
        old_log_probs=zeros,
        tempered_log_probs=zeros,
        finish_reasons=("length", "stop"),
    )


def collected(scores: list[float]) -> Collected:
    samples = [
        Sample(prompt="", completion="", answer="", tokens=tuple(tokens))
        for tokens in rollout().completions()
    ]
    return Collected(
        rollout=rollout(), samples=samples, scores=torch.tensor(scores), parts={}, figures={}
    )


def test_a_steps_advantage_goes_to_the_tokens_up_to_its_end() -> None:
    # steps of 1 and 0, and of 0.5: mean .5, deviation sqrt(1/6); a token has the sum from it on
    def steps(samples: Sequence[Sample]) -> list[list[tuple[int, float]]]:
        return [[(0, 1.0), (1, 0.0)], [(0, 0.5)]]

    cfg = replace(
        CONFIG, prompts_per_step=1, group_size=2, advantages=ProcessSupervised(steps=steps, eps=0.0)
    )
    with Runtime() as run:
        batch = with_advantages(cfg, as_batch(rollout()), collected([3.0, 0.0]), run)
    unit = 0.5 / (1 / 6) ** 0.5
    expected = torch.tensor([[0.0, unit - unit, -unit], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(batch.advantages, expected)


def test_a_completions_advantage_is_spread_over_its_tokens() -> None:
    # rewards 3 and 0: leave-one-out advantages 3 and -3
    cfg = replace(CONFIG, prompts_per_step=1, group_size=2, advantages=LeaveOneOut())
    with Runtime() as run:
        batch = with_advantages(cfg, as_batch(rollout()), collected([3.0, 0.0]), run)
    assert batch.advantages.tolist() == [[0.0, 3.0, 3.0], [0.0, -3.0, 0.0]]


def test_kl_in_reward_is_subtracted_before_the_advantages() -> None:
    # log-ratios to the reference: 1 + 2 and 4; rewards 3 - .5 * 3 = 1.5 and 0 - .5 * 4 = -2
    cfg = replace(
        CONFIG, prompts_per_step=1, group_size=2, advantages=LeaveOneOut(), kl_in_reward=0.5
    )
    ref = torch.tensor([[9.0, -1.0, -2.0], [9.0, -4.0, 9.0]])
    batch = replace(as_batch(rollout()), ref_log_probs=ref)
    assert divergences(batch).tolist() == [3.0, 4.0]
    with Runtime() as run:
        batch = with_advantages(cfg, batch, collected([3.0, 0.0]), run)
    assert batch.advantages.tolist() == [[0.0, 3.5, 3.5], [0.0, -3.5, 0.0]]


def test_kl_in_reward_holds_the_policy_to_the_reference(
    made: LanguageModel, tmp_path: Path
) -> None:
    far = []
    for weight in (1e-9, 3.0):
        cfg = replace(
            CONFIG,
            steps=25,
            objective=PolicyGradient(),
            advantages=LeaveOneOut(),
            kl_in_reward=weight,
        )
        lm = replace(made, model=copy.deepcopy(made.model))
        records = train(cfg, lm, tmp_path / str(weight))
        far.append(sum(record["kl/ref"] for record in records[-5:]) / 5)
    assert far[1] < far[0] / 2


def test_as_batch_leaves_out_what_was_cut_off() -> None:
    whole, cut = (trained_mask(rollout(), left_out) for left_out in (False, True))
    assert whole.tolist() == rollout().mask.tolist()
    assert cut.tolist() == [[False] * 3, [False, True, False]]
    batch = as_batch(replace(rollout(), tempered_log_probs=torch.full((2, 3), -1.0)), cut)
    assert batch.mask.tolist() == cut.tolist()
    assert batch.old_log_probs.tolist() == [[0.0] * 3, [0.0, -1.0, 0.0]]


def test_prompt_lengths_are_those_of_any_row_of_the_group() -> None:
    mask = torch.tensor(
        [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    ).bool()
    assert prompt_lengths(mask, 2).tolist() == [2, 1, 1]


def test_rollout_figures_of_hand_worked_rollout() -> None:
    samples = [
        Sample(prompt="", completion="<think>a</think>", answer=""),
        Sample(prompt="", completion="<think> </think>", answer=""),
    ]
    figures = rollout_figures(rollout(), samples, torch.tensor([1.0, 0.0]), 2)
    means = {name: float(x.total) / float(x.count) for name, x in figures.items()}  # type: ignore[union-attr]  # all are means
    assert means == {
        "reward": 0.5,
        "groups/flat": 0.0,
        "length/mean": 1.5,
        "length/truncated": 0.5,
        "share/reasoning": 0.5,
    }
