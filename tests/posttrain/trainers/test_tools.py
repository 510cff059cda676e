from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from launch.optimizers import AdamW
from launch.runtime import Runtime
from posttrain.data.tasks import Prompt
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.recipes.evaluator import Evaluator, heldout_probe
from posttrain.rewards import Sample
from posttrain.rollout import Engine, Rollout, Sampling
from posttrain.rollout.tool_engine import ToolEngine
from posttrain.tools import ToolOutput, ToolUse
from posttrain.trainers import DynamicSampling, GRPOConfig, ProcessSupervised, train_grpo
from posttrain.trainers.collection import replace_rows
from posttrain.trainers.rollouts import tool_figures

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]
TEXTS += ["!"] * 3


@pytest.fixture(scope="module")
def made() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=1, width=16, heads=2, seed=1)


def fresh(made: LanguageModel) -> LanguageModel:
    return replace(made, model=copy.deepcopy(made.model))


def sums(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.tensor([sum(sample.tokens) % 5 / 5 for sample in samples])


def calls(samples: Sequence[Sample]) -> torch.Tensor:
    """One for each call, as the reward sees it in the text: what the model draws ends with "!"."""
    return torch.tensor([float(sample.completion.count("!")) for sample in samples])


@dataclass
class Sums:
    reward: object = sums

    def train(self) -> list[Prompt]:
        return [Prompt(text=f"{i} plus {i + 1} is", answer="7") for i in range(8)]

    def heldout(self) -> list[Prompt]:
        return []


def shout(request: str) -> ToolOutput:
    return ToolOutput("!" * (1 + len(request) % 2), failed=len(request) % 3 == 0)


# A random model calls all the time: a call begins after any "l", and ends with an "s".
TOOLS = ToolUse(tool=shout, opening="l", closing="s", before=" ", after="")
CONFIG = GRPOConfig(
    tools=TOOLS,
    steps=4,
    prompts_per_step=4,
    group_size=4,
    sampling=Sampling(max_tokens=16, stop_tokens=(10, 11)),
    optimizer=AdamW(learning_rate=1e-2),
    samples_every=0,
)


def train(
    cfg: GRPOConfig,
    lm: LanguageModel,
    output: Path,
    *,
    resume: bool = False,
    task: Sums | None = None,
) -> list[dict[str, float]]:
    resumable = frozenset({"steps", "save_every"})
    with Runtime(output=output, seed=5, resume=resume, resumable=resumable) as run:
        train_grpo(cfg, lm, task or Sums(), run)
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in lm.model.state_dict().items()}


def test_resume_equals_never_stopped(made: LanguageModel, tmp_path: Path) -> None:
    whole, parts = fresh(made), fresh(made)
    expected = train(CONFIG, whole, tmp_path / "whole")
    train(replace(CONFIG, steps=2), fresh(made), tmp_path / "parts")
    found = train(CONFIG, parts, tmp_path / "parts", resume=True)
    assert sum(record["tools/calls"] for record in expected) > 1
    for a, b in zip(expected, found, strict=True):
        clocks = ("seconds", "speed/")
        assert {k: v for k, v in a.items() if not k.startswith(clocks)} == {
            k: v for k, v in b.items() if not k.startswith(clocks)
        }
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 4}])
def test_passes_with_and_without_shared_prompts_give_one_gradient(
    made: LanguageModel, changes: dict[str, int], tmp_path: Path
) -> None:
    cfg = replace(CONFIG, steps=1, mask_truncated=True)
    whole, parts = fresh(made), fresh(made)
    train(cfg, whole, tmp_path / "whole")
    train(replace(cfg, **changes), parts, tmp_path / "parts")
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=2e-5)


def test_a_policy_learns_to_call_but_not_what_the_tool_says(
    made: LanguageModel, tmp_path: Path
) -> None:
    # Paid for outputs, the policy calls more, but does not learn to write them itself.
    [mark] = made.tokenizer.encode("!", add_special_tokens=False)
    sampling = Sampling(max_tokens=16, stop_tokens=(mark,))
    cfg = replace(CONFIG, steps=30, prompts_per_step=8, group_size=8, sampling=sampling)
    lm = fresh(made)
    records = train(cfg, lm, tmp_path / "run", task=Sums(reward=calls))
    rewards = [record["reward"] for record in records]
    assert sum(rewards[-5:]) > 2 * sum(rewards[:5])
    assert records[0]["mismatch"] < 1e-5  # the engine's log-probs, turn by turn, are the trainer's
    assert records[-1]["tools/calls"] > records[0]["tools/calls"]
    assert 0 < records[0]["tools/errors"] < records[0]["tools/calls"]
    assert records[-1]["length/truncated"] > records[0]["length/truncated"]
    prompt = made.tokenizer("3 plus 4 is s", return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        before, after = (x.model(**prompt).logits[0, -1].softmax(-1)[mark] for x in (made, lm))
    assert after < before


def test_groups_are_replaced_with_their_counts(made: LanguageModel, tmp_path: Path) -> None:
    cfg = replace(CONFIG, steps=1, dynamic_sampling=DynamicSampling(rounds=3))
    [record] = train(cfg, fresh(made), tmp_path / "run")
    assert record["tools/calls"] > 0
    a, b = (rollout_of(counts) for counts in ([1, 2, 3], [7, 8, 9]))
    replaced = replace_rows(a, [0, 2], b, [1, 0])
    assert replaced.tool_calls == [8, 2, 7]
    assert replaced.tool_errors == [4, 1, 3]
    figures = tool_figures(replaced)
    assert float(figures["tools/calls"].total) / 3 == pytest.approx(17 / 3)  # type: ignore[union-attr]  # a Mean
    plain = replace(a, tool_calls=(), tool_errors=())
    assert replace_rows(plain, [0], plain, [1]).tool_calls == []


def rollout_of(counts: list[int]) -> Rollout:
    x = torch.zeros(len(counts), 2)
    return Rollout(
        tokens=x.long(),
        mask=x.bool(),
        old_log_probs=x,
        tempered_log_probs=x,
        finish_reasons=["stop"] * len(counts),
        tool_calls=counts,
        tool_errors=[n // 2 for n in counts],
    )


def test_without_tools_nothing_of_them_is_logged(made: LanguageModel, tmp_path: Path) -> None:
    [record] = train(replace(CONFIG, tools=None, steps=1), fresh(made), tmp_path / "run")
    assert not [name for name in record if name.startswith("tools")]


def test_a_probe_sees_completions_with_tools(made: LanguageModel) -> None:
    seen: list[int] = []

    def probe(step: int, engine: object) -> dict[str, float]:
        assert not isinstance(engine, Engine)
        rollout = engine.generate([[20, 21]] * 8, CONFIG.sampling)  # type: ignore[attr-defined]  # an engine
        seen.append(sum(rollout.tool_calls))
        return {}

    with Runtime(seed=5) as run:
        train_grpo(replace(CONFIG, steps=1, probe_every=1), fresh(made), Sums(), run, probe=probe)
    assert seen[0] > 0


def test_held_out_problems_are_judged_with_the_tool(made: LanguageModel) -> None:
    # Only a tool can write "!" here, since it ends what the model draws.
    [mark] = made.tokenizer.encode("!", add_special_tokens=False)
    sampling = Sampling(max_tokens=24, stop_tokens=(mark,))
    evaluator = Evaluator(group_size=8, sampling=sampling, greedy=False)

    def exclaims(samples: Sequence[Sample]) -> torch.Tensor:
        return torch.tensor([float("!" in sample.completion) for sample in samples])

    with Runtime(seed=5) as run:
        probe = heldout_probe(evaluator, made, Sums().train(), exclaims, run)
        plain = Engine(made.model)
        assert probe(1, plain)["heldout/accuracy"] == 0
        assert float(probe(1, ToolEngine(plain, made, TOOLS))["heldout/accuracy"]) > 0.1  # type: ignore[arg-type]  # a float


def test_steps_count_the_tokens_of_tools_as_samples_do() -> None:
    # Prompt of 2, tokens 0 to 4 of which 2 and 3 are a tool's. Steps end with tokens 1 and 4, with
    # rewards 1 and -1 in one row and none in the other: population deviation 1, so the advantages
    # are 1 - 1 = 0 up to token 1, where both steps are ahead, and -1 for the step after.
    mask = torch.tensor([[0, 0, 1, 1, 0, 0, 1], [0, 0, 1, 1, 1, 0, 0]]).bool()
    samples = [
        Sample(prompt="", completion="", answer="", tokens=(1, 2, 3, 4, 5)),
        Sample(prompt="", completion="", answer="", tokens=(1, 2, 3)),
    ]
    supervised = ProcessSupervised(steps=lambda rows: [[(1, 1.0), (4, -1.0)], []], eps=0.0)
    found = supervised.of_tokens(samples, mask, 2)
    expected = torch.zeros(2, 7)
    expected[0, 6] = -1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
