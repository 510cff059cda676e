from __future__ import annotations

import re
from dataclasses import fields

import pytest

from posttrain.data.tasks import Instructions
from posttrain.data.tasks.constraints import (
    KINDS,
    AtLeastWords,
    AtMostWords,
    Avoids,
    Bullets,
    Constraint,
    EndsWith,
    InCase,
    Includes,
    NoCommas,
    Paragraphs,
    read_constraints,
)
from posttrain.data.tasks.instructions import InstructionReward
from posttrain.rewards import Sample


@pytest.mark.parametrize(
    ("constraint", "right", "wrong"),
    [
        (AtLeastWords(3), "it's well-known now", "one two -- ..."),
        (AtMostWords(2), "one, two", "one two three"),
        (AtMostWords(2), "1", "..."),
        (Includes("light", 2), "Light, light.", "light lights lightly"),
        (Avoids("blue"), "blueish", "it is BLUE."),
        (NoCommas(), "a; b", "a, b"),
        (InCase(False), "all small, 3", "Not all"),
        (InCase(True), "ALL É 3", "NOT aLL"),
        (Bullets(2), "so\n* a\n* b", "* a\n *b\n- c"),
        (Paragraphs(2), "a\nb\n\n\n \nc\n", "a\nb"),
        (EndsWith("The end"), "... the end \n", "the end."),
    ],
)
def test_constraint_holds_where_it_is_met(constraint: Constraint, right: str, wrong: str) -> None:
    assert constraint.holds(right)
    assert not constraint.holds(wrong)


def answer_to(constraints: list[Constraint]) -> str:
    """Write something that meets any constraints that a request may have together."""
    by_kind = {type(c): c for c in constraints}
    least = next((c.count for c in constraints if isinstance(c, AtLeastWords)), 8)
    words = ["word"] * least
    for c in constraints:
        if isinstance(c, Includes):
            words[: c.count] = [c.word] * c.count
    text = " ".join(words)
    if Bullets in by_kind:
        text = "\n".join([f"* {text}", *["* x"] * (by_kind[Bullets].count - 1)])  # type: ignore[attr-defined]  # Bullets
    if Paragraphs in by_kind:
        text = "\n\n".join([text, *["x"] * (by_kind[Paragraphs].count - 1)])  # type: ignore[attr-defined]  # Paragraphs
    if EndsWith in by_kind:
        text += f" {by_kind[EndsWith].words}"  # type: ignore[attr-defined]  # EndsWith
    if InCase in by_kind:
        text = text.upper() if by_kind[InCase].capital else text.lower()  # type: ignore[attr-defined]  # InCase
    return text


def test_every_request_can_be_met_and_says_what_is_checked() -> None:
    task = Instructions(most=7)
    samples, seen = [], set()
    for prompt in [*task.train()[:400], *task.heldout()]:
        constraints = read_constraints(prompt.answer)
        seen |= {type(c) for c in constraints}
        assert len({c.topic for c in constraints}) == len(constraints)
        assert prompt.messages is not None
        for c in constraints:
            assert c.text() in prompt.messages[-1]["content"]
        completion = f"<think>No, wait</think>\n{answer_to(constraints)}"
        samples.append(Sample(prompt="", completion=completion, answer=prompt.answer))
    assert seen == set(KINDS)
    assert task.reward(samples).tolist() == [1.0] * len(samples)


def test_one_broken_constraint_or_an_empty_answer_earns_nothing() -> None:
    answer = '[{"kind": "NoCommas"}, {"kind": "AtMostWords", "count": 3}]'
    texts = ["a b c", "a, b", "a b c d", "", "<think>a</think>", "<think>a, b c d</think> a"]
    samples = [Sample(prompt="", completion=text, answer=answer) for text in texts]
    assert InstructionReward()(samples).tolist() == [1, 0, 0, 0, 0, 1]


def test_prompts_depend_on_seed_and_index_alone_and_heldout_subjects_are_new() -> None:
    task = Instructions()
    assert task.train()[7] == Instructions(size=8).train()[7]
    assert task.train()[7] != Instructions(seed=1).train()[7]

    def subjects(prompts: object) -> set[str]:
        found = set()
        for prompt in prompts:  # type: ignore[attr-defined]  # a sequence
            text = prompt.messages[-1]["content"].partition(".")[0]
            found.add(re.sub(r"^(.*? about|Explain|Describe) ", "", text))
        return found

    assert len(task.heldout()) == 256
    assert not subjects(task.heldout()) & subjects(task.train()[:2000])
    texts = {p.messages[-1]["content"] for p in task.train()[:12_000] if p.messages}
    assert len(texts) > 10_000


def test_settings_have_no_surprises() -> None:
    assert all(f.type for kind in KINDS for f in fields(kind))
    for changes, message in (
        ({"most": 0}, "most=0"),
        ({"most": 9}, "1 to 7"),
        ({"size": 0}, "size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            Instructions(**changes)


@pytest.mark.parametrize(
    "answer", ["3", "[]", "x", '[{"kind": "None"}]', '[{"kind": "NoCommas", "count": 1}]']
)
def test_answer_without_constraints_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match=re.escape(answer)):
        read_constraints(answer)
