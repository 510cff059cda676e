from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.errors import UsageError
from posttrain.data.step_labels import (
    LabelledSolution,
    StepDocument,
    encode_solutions,
    load_solutions,
    pad_steps,
    step_ends,
)
from posttrain.data.tasks.base import Prompt
from posttrain.models import LanguageModel, tiny_model, train_tokenizer

RIGHT = {"prompt": "1+2+3", "steps": ["1+2=3", "3+3=7"], "labels": [1, 0.25]}
USER = {"role": "user", "content": "1+2+3"}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    texts = [f"{a}+{b}={a + b}\n-{a}\n" for a in range(9) for b in range(9)]
    return tiny_model(train_tokenizer(texts, vocabulary=80), layers=1, width=16, heads=2)


def written(path: Path, *rows: Any) -> Path:  # noqa: ANN401 - right and wrong ones
    file = path / "steps.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def test_every_form_is_read(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        RIGHT | {"source": "mine"},
        "",
        {"messages": [USER], "steps": RIGHT["steps"], "labels": [True, 0.25]},
        {"text": "1+2+3 =", "steps": ["6"], "labels": [None]},
    )
    chat = Prompt(answer="", messages=(USER,))
    assert load_solutions(file) == [
        LabelledSolution(chat, ("1+2=3", "3+3=7"), (1.0, 0.25)),
        LabelledSolution(chat, ("1+2=3", "3+3=7"), (1.0, 0.25)),
        LabelledSolution(Prompt(answer="", text="1+2+3 ="), ("6",), (None,)),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (RIGHT | {"steps": ["a", "b", "c"]}, "there are 3 steps, but 2 labels: each step needs"),
        (RIGHT | {"labels": [1]}, "there are 2 steps, but 1 labels"),
        (RIGHT | {"labels": [1, 2]}, r"a label is 2, expected a number in 0\.\.1"),
        (RIGHT | {"labels": [1, "+"]}, r"a label is '\+', expected a number"),
        (RIGHT | {"labels": 1}, "labels is int, expected a list"),
        (RIGHT | {"steps": "1+2=3"}, "steps is str, expected a list"),
        (RIGHT | {"steps": ["1+2=3", " "]}, "step 1 is ' ', expected text"),
        (RIGHT | {"steps": [], "labels": []}, "steps is empty"),
        ({"prompt": "a", "labels": []}, "there is no 'steps'"),
        ({"prompt": "a", "steps": []}, "there is no 'labels'"),
        ({"steps": ["a"], "labels": [1]}, "there is no 'prompt'"),
        (RIGHT | {"prompt": 3}, "prompt is int, expected text or a list of messages"),
        (RIGHT | {"prompt": [{"role": "user"}]}, r"message 0 \(user\) has None as content"),
        (RIGHT | {"text": 3}, "text is int, expected text"),
    ],
)
def test_a_line_that_does_not_match_is_named(
    row: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"steps\.jsonl, line 2: {said}"):
        load_solutions(written(tmp_path, RIGHT, row))


def test_steps_end_at_the_token_of_their_line_break_and_at_the_stop_token(
    lm: LanguageModel,
) -> None:
    prompt = Prompt(answer="", text="1+2+3")
    steps, labels = ("1+2=3", "-3", "3+3=6"), (1.0, None, 0.5)
    stop = lm.stop_tokens[0]
    [made] = encode_solutions(lm.tokenizer, [LabelledSolution(prompt, steps, labels)], stop)
    start = lm.tokenizer.encode("1+2+3")
    text = lm.tokenizer.encode("1+2=3\n-3\n3+3=6")
    assert list(made.tokens) == [*start, *text, stop]
    assert made.labels == [1.0, 0.5]
    first, last = made.ends
    assert last == len(made.tokens) - 1
    upto = lm.tokenizer.decode(list(made.tokens[len(start) : first + 1]))
    before = lm.tokenizer.decode(list(made.tokens[len(start) : first]))
    assert upto.startswith("1+2=3\n")  # the token may begin the next line: "\n-"
    assert "\n" not in before


def test_batches_hold_labels_at_the_ends_alone() -> None:
    batch = pad_steps([StepDocument([5, 6, 7], [1, 2], [1.0, 0.5]), StepDocument([8], [0], [0.0])])
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.mask.tolist() == [[False, True, True], [True, False, False]]
    assert batch.labels.tolist() == [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]
    assert [part.tokens.tolist() for part in batch.split(1)] == [[[5, 6, 7]], [[8, 0, 0]]]
    assert len(pad_steps([])) == 0


@pytest.mark.parametrize(
    ("ends", "labels", "said"),
    [
        ([1], [1.0, 0.0], "a solution has 1 steps, but 2 labels"),
        ([2, 1], [1.0, 0.0], r"steps end at \[2, 1\], but there are 3 tokens"),
        ([3], [1.0], r"steps end at \[3\], but there are 3 tokens"),
        ([1, 1], [1.0, 1.0], r"steps end at \[1, 1\]"),
        ([1], [1.5], r"a step has the label 1.5: expected a number in 0\.\.1"),
    ],
)
def test_documents_that_contradict_themselves_are_refused(
    ends: list[int], labels: list[float], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        StepDocument([5, 6, 7], ends, labels)


def test_completions_are_cut_at_breaks_and_at_their_end() -> None:
    assert step_ends([1, 9, 2, 9], {9}) == [1, 3]
    assert step_ends([1, 9, 2], {9}) == [1, 2]
    assert step_ends([], {9}) == []
