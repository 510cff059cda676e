"""Labels by rollouts: the same as one state at a time, in two batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from posttrain.data.step_labels import load_solutions
from posttrain.data.tasks.base import Prompt
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.rewards import Sample
from posttrain.rollout import Engine, Rollout, Sampling
from posttrain.search.language import RolloutValue, Verified, line_breaks
from posttrain.search.step_rollouts import RolledOut, hard, label_steps, soft

TEXTS = [f"{a}\n{b}\n" for a in range(10) for b in range(10)]


class Counted(Engine):
    """Counts its calls."""

    calls = 0

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Rollout:
        self.calls += 1
        return super().generate(prompts, sampling, group_size, seeds=seeds)


def even(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.tensor([float(len(sample.tokens) % 2 == 0) for sample in samples])


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=40), layers=1, width=16, heads=2, seed=4)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return [Prompt(answer=str(i), text=text) for i, text in enumerate(("1", "2\n3", "4"))]


def label(
    lm: LanguageModel, prompts: Sequence[Prompt], engine: Engine | None = None, **more: object
) -> list[RolledOut]:
    sampling = Sampling(max_tokens=9, stop_tokens=lm.stop_tokens)
    settings = {"breaks": line_breaks(lm.tokenizer), "rollouts": 5, "completions": 3} | more
    return label_steps(
        engine or Engine(lm.model),
        lm.tokenizer,
        prompts,
        even,
        sampling,
        **settings,  # type: ignore[arg-type]  # of several types
    )


def test_labels_are_those_of_single_states_in_two_batches(
    lm: LanguageModel, prompts: list[Prompt]
) -> None:
    engine = Counted(lm.model)
    found = label(lm, prompts, engine)
    assert engine.calls == 2
    assert len(found) == 9
    sampling = Sampling(max_tokens=9, stop_tokens=lm.stop_tokens)
    steps = 0
    for i, solution in enumerate(found):
        value = RolloutValue(
            engine=engine,
            sampling=sampling,
            verified=Verified(
                tokenizer=lm.tokenizer,
                prompt=solution.prompt_tokens,
                answer=solution.prompt.answer,
                reward=even,
                stop_tokens=lm.stop_tokens,
                max_tokens=9,
            ),
            count=5,
            seed=i // 3,
        )
        expected = [value(solution.tokens[: end + 1]) for end in solution.ends]
        assert solution.labels == pytest.approx(expected, abs=0)
        assert solution.labels[-1] == float(len(solution.tokens) % 2 == 0)
        steps += len(solution.ends)
    assert steps > len(found)  # some have several
    assert len({x for solution in found for x in solution.labels}) > 2


def test_labels_of_a_prompt_do_not_depend_on_the_others(
    lm: LanguageModel, prompts: list[Prompt]
) -> None:
    whole = label(lm, prompts, seeds=[5, 6, 7])
    assert label(lm, prompts[1:2], seeds=[6]) == whole[3:6]
    assert label(lm, prompts, seeds=[5, 6, 8])[:6] == whole[:6]
    assert label(lm, prompts, seeds=[5, 6, 8])[6:] != whole[6:]


def test_hard_labels_are_whether_any_rollout_is_right(
    lm: LanguageModel, prompts: list[Prompt]
) -> None:
    softly, hardly = label(lm, prompts), label(lm, prompts, estimate=hard)
    for one, other in zip(softly, hardly, strict=True):
        assert other.labels == tuple(float(x > 0) for x in one.labels)
    assert soft([1.0, 0.5, 0.0, 0.9]) == 0.5  # more than a half is right


def test_a_solution_is_a_document_and_a_line_of_json(lm: LanguageModel, tmp_path: Path) -> None:
    tokenizer = lm.tokenizer
    tokens = (*tokenizer.encode("1\n2\n3"), lm.stop_tokens[0])
    breaks = line_breaks(tokenizer)
    ends = tuple(i for i, token in enumerate(tokens) if token in breaks)
    prompt = Prompt(answer="3", text="0")
    made = RolledOut(prompt, (7, 8), tokens, (*ends, len(tokens) - 1), (0.75, 0.5, 0.25))
    document = made.document()
    assert list(document.tokens) == [7, 8, *tokens]
    assert list(document.ends) == [2 + end for end in made.ends]
    (tmp_path / "steps.jsonl").write_text(json.dumps(made.row(tokenizer)))
    [row] = load_solutions(tmp_path / "steps.jsonl")
    assert row.steps == ("1", "2", "3")
    assert row.labels == (0.75, 0.5, 0.25)
    assert row.prompt.text == "0"


def test_counts_below_one_and_no_stop_token_are_refused(
    lm: LanguageModel, prompts: list[Prompt]
) -> None:
    with pytest.raises(ValueError, match="rollouts=0: give at least 1"):
        label(lm, prompts, rollouts=0)
    with pytest.raises(ValueError, match="stop_tokens is empty: name the tokens"):
        label_steps(
            Engine(lm.model), lm.tokenizer, prompts, even, Sampling(max_tokens=4), breaks=()
        )
