from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from launch.config import from_yaml, to_yaml
from launch.errors import UsageError
from launch.optimizers import AdamW
from launch.runtime import Runtime
from posttrain.data.tasks import Prompt
from posttrain.models import LanguageModel, save_model, tiny_model, train_tokenizer
from posttrain.process_reward_models import ProcessRewardModel, process_model
from posttrain.recipes.checkpoints import grpo
from posttrain.rewards import ModelSteps, Sample, steps_of
from posttrain.rewards.steps import step_tensors
from posttrain.rollout import Sampling
from posttrain.search.language import line_breaks
from posttrain.trainers import GRPOConfig, ProcessSupervised, train_grpo

TEXTS = [f"{a} + {b} = {a + b}\n" for a in range(10) for b in range(10)]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=1, width=16, heads=2, seed=3)


@pytest.fixture(scope="module")
def scorer(lm: LanguageModel) -> ProcessRewardModel:
    return process_model(lm, seed=1)


@pytest.fixture(scope="module")
def folder(scorer: ProcessRewardModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps") / "model"
    save_model(scorer.model, scorer.tokenizer, folder)
    return folder


def drawn(lm: LanguageModel, prompt: str, pieces: Sequence[str], *, stops: bool) -> Sample:
    """Return a completion of one token a piece, as an engine would have drawn it."""
    tokens = []
    for piece in pieces:
        [token] = lm.tokenizer.encode(piece, add_special_tokens=False)
        tokens.append(token)
    tokens += lm.stop_tokens[:1] if stops else []
    return Sample(
        prompt=prompt,
        completion="".join(pieces),
        answer="",
        tokens=tuple(tokens),
        prompt_tokens=tuple(lm.tokenizer.encode(prompt, add_special_tokens=False)),
        finish_reason="stop" if stops else "length",
    )


def samples(lm: LanguageModel) -> list[Sample]:
    return [
        # 0: "1", 1: line break, 2: "2", 3: "3", 4: line break, 5: stop token
        drawn(lm, "1 + 2 =", ["1", "\n", "2", "3", "\n"], stops=True),
        drawn(lm, "3 + 4 + 5 =", ["7"], stops=False),  # cut off in its first step
        drawn(lm, "1 + 2 =", [], stops=False),  # nothing written: no step
        drawn(lm, "1 + 2 =", ["4", "\n", "5"], stops=False),
    ]


def test_steps_end_at_line_breaks_and_at_the_last_token(
    lm: LanguageModel, scorer: ProcessRewardModel, folder: Path
) -> None:
    for steps in (ModelSteps(str(folder)), steps_of(scorer)):
        found = steps(samples(lm))
        assert [[end for end, _ in own] for own in found] == [[1, 4, 5], [0], [], [1, 2]]
        for sample, own in zip(samples(lm), found, strict=True):
            row = torch.tensor([[*sample.prompt_tokens, *sample.tokens]])
            with torch.no_grad():  # transformers' own forward; place of a step: prompt + end
                logits = copy.deepcopy(scorer.model).eval()(row).logits[0, :, 0]
            places = [len(sample.prompt_tokens) + end for end, _ in own]
            expected = logits[places].sigmoid()
            torch.testing.assert_close(torch.tensor([p for _, p in own]), expected)
    ends, _, mask = step_tensors(steps_of(scorer), samples(lm))
    assert mask.sum(-1).tolist() == [3, 1, 0, 2]
    assert ends[0].tolist() == [1, 4, 5]
    assert steps_of(scorer)([]) == []


def test_a_later_step_sees_the_steps_before_it_and_not_those_after(
    lm: LanguageModel, scorer: ProcessRewardModel
) -> None:
    one, other = (drawn(lm, "1 + 2 =", ["1", "\n", last, "\n"], stops=True) for last in ("2", "3"))
    [(_, first), (_, second), _], [(_, same), (_, changed), _] = steps_of(scorer)([one, other])
    assert first == pytest.approx(same, abs=1e-6)
    assert abs(second - changed) > 1e-4


def test_advantages_are_those_of_the_models_steps(
    lm: LanguageModel, scorer: ProcessRewardModel
) -> None:
    # Two completions of one prompt: steps of p, q (one token each, the break joined) and of r.
    group = [samples(lm)[3], drawn(lm, "1 + 2 =", ["4"], stops=False)]
    (_, p), (_, q) = steps_of(scorer)(group)[0]
    [(_, r)] = steps_of(scorer)(group)[1]
    mean = (p + q + r) / 3
    deviation = (((p - mean) ** 2 + (q - mean) ** 2 + (r - mean) ** 2) / 3) ** 0.5
    a, b, c = ((x - mean) / deviation for x in (p, q, r))
    # columns: two of prompt; tokens 0 and 1 are of the first step, token 2 of the second
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 0, 0]]).bool()
    advantages = ProcessSupervised(steps=steps_of(scorer), eps=0.0)
    expected = torch.tensor([[0, 0, a + b, a + b, b], [0, 0, c, 0, 0]])
    torch.testing.assert_close(advantages.of_tokens(group, mask, 2), expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_named(
    lm: LanguageModel, scorer: ProcessRewardModel, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="row 0 has a completion without tokens"):
        steps_of(scorer)([Sample(prompt="1 + 2 =", completion="3", answer="")])
    other = train_tokenizer([f"{text[::-1]}; no" for text in TEXTS], vocabulary=60)
    foreign = process_model(tiny_model(other, layers=1, width=16, heads=2))
    with pytest.raises(ValueError, match=r"the policy's tokenizer.*monro run prm"):
        steps_of(foreign)(samples(lm))
    with pytest.raises(UsageError, match=r"there is no process reward model .*monro run prm"):
        ModelSteps(str(tmp_path / "none")).check()
    save_model(lm.model, lm.tokenizer, tmp_path / "policy")
    with pytest.raises(UsageError, match="expected a process reward model"):
        ModelSteps(str(tmp_path / "policy")).check()
    ModelSteps(str(folder)).check()


def test_grpo_looks_for_the_model_before_any_work(
    lm: LanguageModel, folder: Path, tmp_path: Path
) -> None:
    save_model(lm.model, lm.tokenizer, tmp_path / "policy")
    rows = [{"question": text, "answer": "3"} for text in TEXTS]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = (
        f"model: {tmp_path / 'policy'}\ntask: {tmp_path / 'task.jsonl'}\nadvantages:\n"
        "  _type: posttrain.trainers:ProcessSupervised\n"
        "  steps: {_type: 'posttrain.rewards:ModelSteps', path: '%s'}\n"
    )
    job = from_yaml(given % folder, grpo())
    assert job.advantages == ProcessSupervised(steps=ModelSteps(str(folder)))
    assert from_yaml(to_yaml(job), grpo()) == job
    job.check()
    with pytest.raises(UsageError, match="there is no process reward model"):
        from_yaml(given % (tmp_path / "none"), grpo()).check()


@dataclass
class Words:
    """Prompts whose completions are worth the sevens in them."""

    def reward(self, samples: Sequence[Sample], /) -> torch.Tensor:
        return torch.tensor([sample.completion.count("7") / 4 for sample in samples])

    def train(self) -> list[Prompt]:
        return [Prompt(text=f"{i} + {i + 1} =", answer="7") for i in range(8)]

    def heldout(self) -> list[Prompt]:
        return []


def test_a_policy_learns_from_rewards_of_steps_alone(lm: LanguageModel, tmp_path: Path) -> None:
    [seven] = lm.tokenizer.encode("7", add_special_tokens=False)

    def rule(samples: Sequence[Sample]) -> list[list[tuple[int, float]]]:
        return [[(i, float(token == seven)) for i, token in enumerate(s.tokens)] for s in samples]

    cfg = GRPOConfig(
        steps=16,
        prompts_per_step=8,
        group_size=8,
        advantages=ProcessSupervised(steps=rule),
        sampling=Sampling(max_tokens=6),
        optimizer=AdamW(learning_rate=1e-2),
        samples_every=0,
    )
    policy = replace(lm, model=copy.deepcopy(lm.model))
    with Runtime(output=tmp_path / "run", seed=5) as run:
        train_grpo(cfg, policy, Words(), run)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rewards = [json.loads(line)["reward"] for line in lines]
    assert sum(rewards[-3:]) > 2 * sum(rewards[:3])  # a mean of 192 has a deviation of .01


def test_line_breaks_of_the_tests_tokenizer_are_single(lm: LanguageModel) -> None:
    [token] = lm.tokenizer.encode("\n", add_special_tokens=False)
    assert token in line_breaks(lm.tokenizer)
