"""Where labelled steps come from, and what is refused before any work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch.errors import UsageError
from launch.runtime import Runtime
from posttrain.data.step_labels import load_solutions
from posttrain.data.tasks.base import Prompt
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.recipes.sources import PairFile
from posttrain.recipes.step_sources import RolledOutSums, StepFile, worked_labels
from posttrain.recipes.tiny import sums
from posttrain.rollout import Sampling

TASK = sums((2, 3), heldout=8)
PROMPT = Prompt(answer="-2", text="1 - 5 + 2 =", metadata={"expression": "1 - 5 + 2"})


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    tokenizer = train_tokenizer(RolledOutSums(task=TASK).texts(200))
    return tiny_model(tokenizer, layers=1, width=16, heads=2, seed=1)


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        (["<think>1 - 5 = -4\n", "-4 + 2 = -2</think>\n", "<answer>-2</answer>"], [1, 1, 1]),
        # A token may hold a line break and the sign behind it.
        (["<think>1 - 5 = -4\n-", "4 + 2 = -2</think>\n", "<answer>-2</answer>"], [1, 1, 1]),
        (["<think>1 - 5 = -3\n-", "3 + 2 = -1</think>\n", "<answer>-1</answer>"], [0, 0, 0]),
        (["<think>1 - 5 = -4\n", "-4 + 2 = -3</think>\n", "<answer>-2</answer>"], [1, 0, 1]),
        (["<think>1 - 5 = -4\n", "<answer>-2</answer>"], [1, 1]),
        (["no answer"], [0]),
    ],
)
def test_worked_lines_are_right_until_the_first_wrong_one(
    steps: list[str], labels: list[float]
) -> None:
    assert worked_labels(PROMPT, steps) == labels


def test_rolled_out_sums_keep_their_steps_and_the_truth(lm: LanguageModel, tmp_path: Path) -> None:
    source = RolledOutSums(task=TASK, problems=6, rollouts=2, sampling=Sampling(max_tokens=12))
    source.check()
    with Runtime(output=tmp_path / "run", seed=1) as run:
        found = source.steps(lm, run, 1)
    assert (len(found.learnt), len(found.heldout), len(found.truth)) == (6, 8, 8)
    for drawn, known in zip(found.heldout, found.truth, strict=True):
        assert drawn.tokens == known.tokens
        assert drawn.ends == known.ends
    kept = load_solutions(tmp_path / "run" / "steps.jsonl")
    assert [x.prompt.messages for x in kept] == [x.messages for x in TASK.train()[:6]]


def test_the_last_lines_of_a_file_are_held_out(lm: LanguageModel, tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1 =", "steps": ["1 + 1 = 2"], "labels": [i % 2]} for i in range(10)]
    path = tmp_path / "steps.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    source = StepFile(path=str(path), heldout_share=0.2)
    source.check()
    found = source.steps(lm, Runtime(), 0)
    assert [x.labels[0] for x in (*found.learnt, *found.heldout)] == [0.0, 1.0] * 5
    assert len(found.heldout) == 2
    assert len(replace(source, heldout_share=0.0).steps(lm, Runtime(), 0).heldout) == 0
    with pytest.raises(UsageError, match=r"heldout_share=0.01 of the 10 lines of .* is no line"):
        replace(source, heldout_share=0.01).check()
    with pytest.raises(UsageError, match="no data is given"):
        StepFile().check()


def test_a_share_of_pairs_that_is_no_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "1", "chosen": "2", "rejected": "3"}))
    with pytest.raises(UsageError, match=r"heldout_share=0.5 of the 1 lines of .* is no line"):
        PairFile(path=str(path), heldout_share=0.5).check()


def test_too_few_problems_are_refused() -> None:
    with pytest.raises(UsageError, match=r"problems=9, but the task has 5"):
        RolledOutSums(task=sums((2, 3), heldout=8, size=5), problems=9).check()
    with pytest.raises(UsageError, match="the task holds no problem out"):
        RolledOutSums(task=sums((2, 3), heldout=0), problems=9).check()
