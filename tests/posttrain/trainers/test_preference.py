import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from launch.optimizers import AdamW
from launch.runtime import Runtime, RuntimeConfig
from launch.schedule import Constant
from posttrain.data.packing import Document
from posttrain.data.preferences import Pair, pad_pairs, unrelated_pairs
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.objectives import DPO, GRPO, IPO, KTO, ORPO, PreferenceObjective, SimPO
from posttrain.trainers import PreferenceConfig, train_preferences
from posttrain.trainers.preference import pair_log_probs, reference_point
from posttrain.trainers.references import Reference

SUMS = [(a, b) for a in range(6) for b in range(6)]
TEXTS = [f"{a} plus {b} is {a + b}, exactly" for a, b in SUMS]
CONFIG = PreferenceConfig(
    steps=4,
    pairs_per_step=10,
    row_length=24,
    optimizer=AdamW(learning_rate=1e-2),
    schedule=Constant(),
)
OBJECTIVES: tuple[PreferenceObjective, ...] = (DPO(), IPO(), SimPO(), ORPO(), KTO())
every_objective = pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=[type(x).__name__ for x in OBJECTIVES]
)


@pytest.fixture(scope="module")
def made() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=1, width=16, heads=2, seed=1)


@pytest.fixture(scope="module")
def pairs(made: LanguageModel) -> list[Pair]:
    def document(prompt: str, completion: str) -> Document:
        start, rest = made.tokenizer.encode(prompt), made.tokenizer.encode(completion)
        return Document(start + rest, [False] * len(start) + [True] * len(rest))

    return [
        (
            document(f"{a} plus {b} is", f" {a + b}"),
            document(f"{a} plus {b} is", f" {a}, exactly" if b else " 1"),
        )
        for a, b in SUMS
    ]


def train(
    cfg: PreferenceConfig,
    made: LanguageModel,
    pairs: Sequence[Pair],
    output: Path | None = None,
    *,
    heldout: Sequence[Pair] = (),
    resume: bool = False,
) -> nn.Module:
    model = copy.deepcopy(made.model)
    with Runtime(output=output, seed=2, resume=resume) as run:
        train_preferences(cfg, model, pairs, run, heldout=heldout)
    return model


def records(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "speed/")
    return [{k: v for k, v in line.items() if not k.startswith(clock)} for line in lines]


def sums_of(model: nn.Module, document: Document) -> tuple[float, int]:
    """Return a completion's log-probability and its tokens, through transformers' own forward."""
    tokens = torch.tensor([list(document.tokens)])
    with torch.no_grad():
        log_probs: Tensor = model(tokens).logits[0, :-1].log_softmax(-1)
    wanted = torch.tensor(list(document.mask))[1:]
    found = log_probs.gather(-1, tokens[0, 1:, None])[wanted]
    return found.sum().item(), int(wanted.sum())


@every_objective
def test_train_preferences_raises_margin_and_accuracy(
    objective: PreferenceObjective, made: LanguageModel, pairs: list[Pair], tmp_path: Path
) -> None:
    cfg = replace(CONFIG, objective=objective, steps=30, heldout_every=10)
    train(cfg, made, pairs[:-8], tmp_path / "run", heldout=pairs[-8:])
    found = records(tmp_path / "run")
    assert found[-1]["loss"] < found[0]["loss"]
    assert found[-1]["reward/margin"] > found[0]["reward/margin"]
    assert found[-1]["reward/margin"] == pytest.approx(
        found[-1]["reward/chosen"] - found[-1]["reward/rejected"]
    )
    assert found[-1]["accuracy"] > 0.7
    assert all(("reference_point" in record) == isinstance(objective, KTO) for record in found)
    looks = [record for record in found if "heldout/accuracy" in record]
    assert [record["step"] for record in looks] == [1, 10, 20, 30]
    assert looks[-1]["heldout/margin"] > looks[0]["heldout/margin"]


@every_objective
@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 4}, {"row_length": 64}])
def test_micro_batches_change_nothing(
    objective: PreferenceObjective,
    changes: dict[str, int],
    made: LanguageModel,
    pairs: list[Pair],
) -> None:
    cfg = replace(CONFIG, objective=objective)
    whole = train(cfg, made, pairs)
    other = train(replace(cfg, **changes), made, pairs)
    torch.testing.assert_close(other.state_dict(), whole.state_dict(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_first_step_has_no_margin_from_the_reference(
    precision: Literal["fp32", "bf16"], made: LanguageModel, pairs: list[Pair], tmp_path: Path
) -> None:
    cfg, model = replace(CONFIG, steps=1, micro_batch=3), copy.deepcopy(made.model)
    with Runtime(RuntimeConfig(precision=precision), output=tmp_path / "run") as run:
        train_preferences(cfg, model, pairs, run)
    (record,) = records(tmp_path / "run")
    assert record["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert record["reward/chosen"] == record["reward/rejected"] == record["accuracy"] == 0


def test_reference_stays_the_model_as_it_was_given(
    made: LanguageModel, pairs: list[Pair], tmp_path: Path
) -> None:
    cfg = replace(CONFIG, objective=DPO(beta=0.3), steps=2, pairs_per_step=len(pairs))
    after_one = train(replace(cfg, steps=1), made, pairs)
    train(cfg, made, pairs, tmp_path / "run")
    ratios = [
        [sums_of(after_one, document)[0] - sums_of(made.model, document)[0] for document in pair]
        for pair in pairs
    ]
    chosen, rejected = 0.3 * torch.tensor(ratios).T
    second = records(tmp_path / "run")[1]
    assert second["reward/chosen"] == pytest.approx(chosen.mean().item(), rel=1e-4)
    assert second["reward/rejected"] == pytest.approx(rejected.mean().item(), rel=1e-4)
    assert second["accuracy"] == pytest.approx((chosen > rejected).float().mean().item())


def test_simpo_sees_mean_log_probabilities_and_makes_no_reference(
    made: LanguageModel, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.trainers.preference.frozen_log_probs", None)
    cfg = replace(CONFIG, objective=SimPO(), steps=1, pairs_per_step=len(pairs))
    train(cfg, made, pairs, tmp_path / "run")
    (record,) = records(tmp_path / "run")
    means = [
        [total / tokens for total, tokens in (sums_of(made.model, x) for x in pair)]
        for pair in pairs
    ]
    chosen, rejected = 2.5 * torch.tensor(means).T
    losses = -torch.nn.functional.logsigmoid(chosen - rejected - 1.375)
    assert record["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert record["reward/margin"] == pytest.approx((chosen - rejected).mean().item(), rel=1e-4)
    counted = sum(sums_of(made.model, document)[1] for pair in pairs for document in pair)
    assert record["tokens"] == counted


def test_reference_point_is_of_prompts_with_completions_of_other_pairs(
    made: LanguageModel, pairs: list[Pair]
) -> None:
    cfg = replace(CONFIG, objective=KTO())
    model = train(cfg, made, pairs)
    ordered = [(pairs[i], pairs[(i + 1) % 5]) for i in range(5)]
    with Runtime() as run:
        others = unrelated_pairs(ordered, cfg.row_length)
        reference = Reference(made.model, run.device)
        found = reference_point(cfg, model, reference, others, run)
        small = replace(cfg, micro_batch=1)
        torch.testing.assert_close(reference_point(small, model, reference, others, run), found)
    rewards = []
    for first, second in ordered:
        for prompt, completion in zip(first, second, strict=True):
            start = [t for t, counts in zip(prompt.tokens, prompt.mask, strict=True) if not counts]
            rest = [t for t, m in zip(completion.tokens, completion.mask, strict=True) if m]
            joined = Document(start + rest, [False] * len(start) + [True] * len(rest))
            rewards.append(sums_of(model, joined)[0] - sums_of(made.model, joined)[0])
    expected = max(0.0, sum(rewards) / len(rewards))
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_pairs_without_a_common_prompt_are_taken_as_they_are(
    made: LanguageModel, pairs: list[Pair]
) -> None:
    apart = [(pairs[0][0], pairs[8][1]), (pairs[30][0], pairs[1][1])]
    assert pairs[30][0].tokens[0] != pairs[1][1].tokens[0]
    batch = pad_pairs(apart)
    found = pair_log_probs(made.model, batch).sum(-1).tolist()
    assert found == pytest.approx([sums_of(made.model, x)[0] for p in apart for x in p], rel=1e-5)


@pytest.mark.parametrize("objective", [DPO(), KTO()])
def test_resumed_training_equals_one_never_stopped(
    objective: PreferenceObjective, made: LanguageModel, pairs: list[Pair], tmp_path: Path
) -> None:
    cfg = replace(CONFIG, objective=objective, steps=6, save_every=2)
    whole = train(cfg, made, pairs, tmp_path / "run")
    expected = records(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    resumed = train(cfg, made, pairs, tmp_path / "run", resume=True)
    assert records(tmp_path / "run") == expected
    for name, weight in whole.state_dict().items():
        assert weight.equal(resumed.state_dict()[name]), name


def test_what_cannot_be_trained_on_is_named(made: LanguageModel, pairs: list[Pair]) -> None:
    with pytest.raises(ValueError, match="there are no pairs"):
        train(CONFIG, made, [])
    long = Document(tokens=[1] * 30, mask=[False] + [True] * 29)
    with pytest.raises(ValueError, match=r"pair 1: the rejected document has 30 .*row_length=24"):
        train(CONFIG, made, [pairs[0], (pairs[1][0], long)])
    with pytest.raises(ValueError, match="there is one pair"):
        train(replace(CONFIG, objective=KTO()), made, pairs[:1])


@pytest.mark.parametrize("name", ["steps", "pairs_per_step", "row_length", "micro_batch"])
def test_config_refuses_counts_below_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        replace(CONFIG, **{name: 0})


def test_config_refuses_an_objective_of_policies() -> None:
    with pytest.raises(ValueError, match="objective is GRPO, which compares no pairs: use DPO"):
        replace(CONFIG, objective=GRPO())


def test_config_refuses_a_reference_point_of_one_pair() -> None:
    with pytest.raises(ValueError, match="pairs_per_step=1"):
        replace(CONFIG, objective=KTO(), pairs_per_step=1)
