# ruff: noqa: RUF001 - Cyrillic is meant
from __future__ import annotations

import re
from typing import Any

import pytest

from posttrain.data.tasks import Prompt, WordProblems
from posttrain.rewards import Sample

LANGUAGES = pytest.mark.parametrize("language", ["english", "russian"])
SIGNS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def problems(language: str, **changes: object) -> WordProblems:
    return WordProblems(language, form="text", system=None, **changes)  # type: ignore[arg-type]  # as a test has them


def told(prompt: Prompt) -> str:
    """Return a text without its numbers."""
    return re.sub(r"\d+", "0", prompt.text or "")


@LANGUAGES
def test_answer_follows_from_the_two_numbers_of_the_text(language: str) -> None:
    task = problems(language)
    for prompt in [*task.train()[:300], *task.heldout()]:
        a, b = map(int, re.findall(r"\d+", prompt.text or ""))
        assert int(prompt.answer) == SIGNS[prompt.metadata["sign"]](a, b)
        assert 2 <= b < a <= 999


@LANGUAGES
def test_there_are_ten_thousand_and_heldout_ones_are_told_otherwise(language: str) -> None:
    task = problems(language)
    train = list(task.train())
    assert len({prompt.text for prompt in train}) > 10_000
    assert not {told(p) for p in train} & {told(p) for p in task.heldout()}
    assert {p.metadata["sign"] for p in task.heldout()} == set(SIGNS)


def test_languages_differ_in_their_script() -> None:
    for language, letters in (("english", "[A-Za-z]"), ("russian", "[А-Яа-яЁё]")):
        for prompt in problems(language).train()[:50]:
            words = re.sub(r"[\d\s.,:?]", "", prompt.text or "")
            assert re.fullmatch(f"{letters}+", words)


def test_prompts_depend_on_seed_and_index_alone() -> None:
    assert problems("russian").train()[9] == problems("russian", size=10).train()[9]
    assert problems("russian").train()[9] != problems("russian", seed=1).train()[9]


def test_language_says_how_to_answer_unless_told_otherwise() -> None:
    def first(**changes: object) -> str:
        messages = WordProblems("russian", **changes).train()[0].messages
        assert messages is not None
        return messages[0]["content"]

    assert "по-русски" in first()
    assert first(system="Think.") == "Think."
    assert first(system=None).startswith("В корзине")


def test_right_answer_is_paid() -> None:
    task = WordProblems("russian")
    prompt = task.train()[0]
    texts = [f"<answer>{prompt.answer}</answer>", "<answer>0</answer>"]
    samples = [Sample(prompt="", completion=text, answer=prompt.answer) for text in texts]
    assert task.reward(samples).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": "klingon"}, "expected english or russian"),
        ({"form": "prose"}, "form='prose'"),
        ({"size": 0}, "size=0"),
        ({"largest": 9}, "largest=9"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WordProblems(**changes)
