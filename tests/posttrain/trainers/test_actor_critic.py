import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launch.errors import UsageError
from launch.optimizers import AdamW
from launch.runtime import Runtime, RuntimeConfig
from launch.schedule import Constant
from posttrain.critics import ActorCritic, Critic, SecondModel, ValueHead
from posttrain.data.tasks import Prompt
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.objectives import CISPO, GRPO, ClipCov, IcePop, ValueLoss
from posttrain.rewards import Sample
from posttrain.rollout import RolloutBatch, Sampling
from posttrain.trainers import ActorCriticConfig, train_actor_critic
from posttrain.trainers.actor_critic import shuffled_minibatches, update, with_old, with_returns

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]
HEAD, MODEL = ValueHead(optimizer=AdamW(learning_rate=1e-2)), SecondModel()
both = pytest.mark.parametrize("critic", [HEAD, MODEL], ids=["head", "model"])
CONFIG = ActorCriticConfig(
    steps=2,
    prompts_per_step=8,
    minibatches=2,
    epochs=2,
    sampling=Sampling(max_tokens=6),
    optimizer=AdamW(learning_rate=1e-2),
    critic=HEAD,
    samples_every=0,
)


@pytest.fixture(scope="module")
def made() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=1, width=16, heads=2, seed=1)


def fresh(made: LanguageModel) -> LanguageModel:
    return replace(made, model=copy.deepcopy(made.model))


def sevens(samples: Sequence[Sample]) -> list[float]:
    return [sample.completion.count("7") / 4 for sample in samples]


def remainders(samples: Sequence[Sample]) -> list[float]:
    return [sum(sample.tokens) % 5 / 5 for sample in samples]


STOPS = Sampling(max_tokens=6, stop_tokens=tuple(range(10, 16)))


@dataclass
class Words:
    reward: object = sevens

    def train(self) -> list[Prompt]:
        return [Prompt(text=f"{i} plus {i + 1} is", answer="7") for i in range(8)]

    def heldout(self) -> list[Prompt]:
        return []


def train(
    cfg: ActorCriticConfig, lm: LanguageModel, output: Path | None = None, *, resume: bool = False
) -> tuple[ActorCritic, list[dict[str, Any]]]:
    with Runtime(output=output, seed=5, resume=resume) as run:
        pair = train_actor_critic(cfg, lm, Words(), run)
    if output is None:
        return pair, []
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return pair, [json.loads(line) for line in lines]


def weights(pair: ActorCritic) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in pair.state_dict().items()}


@both
def test_it_raises_a_reward_that_can_be_raised(
    made: LanguageModel, critic: Critic, tmp_path: Path
) -> None:
    cfg = replace(CONFIG, steps=20, group_size=4, critic=critic)
    _, records = train(cfg, fresh(made), tmp_path / "run")
    rewards = [record["reward"] for record in records]
    assert sum(rewards[-5:]) / 5 > 3 * sum(rewards[:5]) / 5
    expected = {"loss", "grad_norm", "learning_rate", "clip_fraction", "ratio/p50", "kl/old"}
    expected |= {"entropy", "length/mean", "speed/tokens", "value/loss", "value/clipped"}
    expected |= {"value/explained_variance", "value/mean", "value/returns", "mismatch"}
    assert expected <= records[0].keys()
    assert ("value/grad_norm" in records[0]) == isinstance(critic, SecondModel)
    assert records[0]["value/explained_variance"] == 0  # all values are 0 yet


@both
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_change_nothing(
    made: LanguageModel, critic: Critic, micro_batch: int
) -> None:
    cfg = replace(CONFIG, steps=1, critic=critic)
    whole, _ = train(cfg, fresh(made))
    parts, _ = train(replace(cfg, micro_batch=micro_batch), fresh(made))
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=2e-5)


def rollout(made: LanguageModel) -> tuple[RolloutBatch, Tensor]:
    """Return a batch of ragged rows, one with a token of a tool, and rewards."""
    g = torch.Generator().manual_seed(2)
    mask = (torch.arange(10) >= 3) & (torch.arange(10) < torch.tensor([[9], [5], [10], [7]] * 2))
    mask[2, 5] = False
    zeros = torch.zeros(8, 10)
    tokens = torch.randint(10, 40, (8, 10), generator=g)
    batch = RolloutBatch(tokens=tokens, mask=mask, old_log_probs=zeros, advantages=zeros)
    return batch, torch.randn(8, generator=g)


def gradients(
    cfg: ActorCriticConfig, made: LanguageModel, batch: RolloutBatch, scores: Tensor
) -> list[Tensor]:
    """Return what one update moves, by plain steps of size 1, in parts of the gradient's norm."""
    pair = cfg.critic.build(fresh(made))
    g = torch.Generator().manual_seed(6)
    for parameter in pair.critic.parameters():  # values other than 0
        parameter.data.add_(torch.randn(parameter.shape, generator=g) / 8)
    before = weights(pair)
    optimizer = torch.optim.SGD([p for p in pair.parameters() if p.requires_grad], lr=1.0)
    with Runtime(seed=5) as run:
        rows = with_returns(cfg, with_old(cfg, pair, fresh(made).model, batch, run), scores, run)
        rows = replace(rows, old_log_probs=rows.old_log_probs - torch.where(rows.mask, 0.1, 0.0))
        update(cfg, pair, {"optimizer": optimizer}, rows, 1, run)
    return [(x - before[name]) for name, x in weights(pair).items()]


@both
def test_split_order_and_padding_change_no_update(made: LanguageModel, critic: Critic) -> None:
    cfg = replace(CONFIG, critic=critic, minibatches=1, epochs=1, kl_in_reward=0.1)
    batch, scores = rollout(made)
    whole = gradients(cfg, made, batch, scores)
    assert sum(float(x.square().sum()) for x in whole) > 0.1
    order = torch.tensor([5, 2, 0, 7, 1, 3, 6, 4])
    wide = {
        name: torch.nn.functional.pad(getattr(batch, name), (0, 3))
        for name in ("tokens", "mask", "old_log_probs", "advantages")
    }
    wide["tokens"][:, 10:] = 9
    padded = RolloutBatch(**wide)
    for found in (
        gradients(replace(cfg, micro_batch=3), made, batch, scores),
        gradients(cfg, made, batch.take(order), scores[order]),
        gradients(cfg, made, padded, scores),
    ):
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)


def test_returns_are_worked_from_rewards_values_and_penalties() -> None:
    # One row of two tokens, values 1/4 and 1/2, log-ratios 1 and 2 with weight 1/8, reward 1:
    # rewards -1/8 and 3/4; A_2 = 3/4 - 1/2 = 1/4; A_1 = -1/8 + 1/2 - 1/4 + 1/2 * 1/4 = 1/4
    mask = torch.tensor([[False, True, True]])
    batch = RolloutBatch(
        tokens=torch.zeros(1, 3, dtype=torch.int64),
        mask=mask,
        old_log_probs=torch.tensor([[9.0, -1.0, -1.0]]),
        ref_log_probs=torch.tensor([[-9.0, -2.0, -3.0]]),
        advantages=torch.zeros(1, 3),
        values=torch.tensor([[0.0, 0.25, 0.5]]),
    )
    cfg = replace(CONFIG, trace=0.5, whiten=False, kl_in_reward=0.125)
    with Runtime() as run:
        found = with_returns(cfg, batch, torch.tensor([1.0]), run)
        assert found.returns is not None
        assert found.advantages.tolist() == [[0, 0.25, 0.25]]
        assert found.returns.tolist() == [[0, 0.5, 0.75]]
        white = with_returns(replace(cfg, whiten=True), batch, torch.tensor([1.0]), run)
    assert white.advantages.tolist() == [[0, 0, 0]]  # equal ones
    assert torch.equal(white.returns, found.returns)  # type: ignore[arg-type]  # it is not None


def test_every_epoch_sees_every_row_once_in_another_order() -> None:
    tokens = torch.arange(10)[:, None].expand(10, 2)
    zeros = torch.zeros(10, 2)
    batch = RolloutBatch(tokens=tokens, mask=zeros == 0, old_log_probs=zeros, advantages=zeros)
    cfg = replace(CONFIG, prompts_per_step=10, minibatches=3)
    orders = []
    for step in (1, 1, 2):
        with Runtime(seed=5) as run:
            parts = [x.tokens[:, 0].tolist() for x in shuffled_minibatches(cfg, batch, step, run)]
        assert [len(part) for part in parts] == [4, 3, 3] * 2
        epochs = [[*a, *b, *c] for a, b, c in (parts[:3], parts[3:])]
        assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
        assert epochs[0] != epochs[1]
        orders.append(epochs)
    assert orders[0] == orders[1] != orders[2]


@both
def test_resume_equals_never_stopped(made: LanguageModel, critic: Critic, tmp_path: Path) -> None:
    cfg = replace(CONFIG, steps=4, critic=critic, save_every=2, schedule=Constant())
    whole, records = train(cfg, fresh(made), tmp_path / "whole")
    train(replace(cfg, steps=2), fresh(made), tmp_path / "parts")
    parts, resumed = train(cfg, fresh(made), tmp_path / "parts", resume=True)
    assert [record["step"] for record in resumed] == [1, 2, 3, 4]
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=0)
    assert records[-1]["value/loss"] == resumed[-1]["value/loss"]


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": GRPO(kl_weight=0.5)},
        {"objective": CISPO(), "mismatch": IcePop(0.5, 5.0)},
        {"objective": ClipCov(cov_low=0.0), "whiten": False},
        {"kl_in_reward": 0.1, "mask_truncated": True, "sampling": STOPS},
        {"group_size": 2, "value_loss": ValueLoss(clip=None)},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_other_settings_train(made: LanguageModel, changes: dict[str, Any], tmp_path: Path) -> None:
    lm = fresh(made)
    with Runtime(output=tmp_path / "run", seed=5) as run:
        train_actor_critic(replace(CONFIG, steps=1, **changes), lm, Words(remainders), run)
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert not all(
        torch.equal(x, y)
        for x, y in zip(lm.model.parameters(), made.model.parameters(), strict=True)
    )
    compares = "kl_in_reward" in changes or changes.get("objective") == GRPO(kl_weight=0.5)
    assert ("kl/ref" in record) == compares
    assert ("groups/flat" in record) == ("group_size" in changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minibatches": 9}, r"minibatches=9, but a rollout has only .* = 8 completions"),
        ({"epochs": 0}, "epochs=0: give at least 1"),
        ({"trace": 1.5}, r"trace=1\.5: it lies between 0 and 1"),
        ({"kl_in_reward": -0.1}, r"kl_in_reward=-0\.1"),
        ({"sampling": Sampling(max_tokens=4, temperature=0.0)}, r"sampling\.temperature=0"),
        ({"sampling": Sampling(max_tokens=4, top_k=5)}, r"sampling\.top_k=5.*off-policy"),
    ],
)
def test_config_refuses_what_cannot_train(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_one_loss_scale_for_two_optimizers_is_refused(made: LanguageModel) -> None:
    cfg = replace(CONFIG, critic=MODEL)
    with (
        Runtime(RuntimeConfig(precision="fp16")) as run,
        pytest.raises(UsageError, match=r"precision=fp16 with a critic that has an optimizer"),
    ):
        train_actor_critic(cfg, fresh(made), Words(), run)
