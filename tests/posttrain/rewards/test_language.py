from __future__ import annotations

import time

import pytest
import torch

from posttrain.rewards import LanguageConsistency, Sample
from posttrain.rewards.language import SCRIPTS, reasoning, words_by_script


def share(script: str, completion: str) -> float:
    rewards = LanguageConsistency(script)([Sample(prompt="", completion=completion, answer="")])
    assert rewards.dtype == torch.float32
    return rewards.item()


@pytest.mark.parametrize(
    ("script", "completion", "expected"),
    [
        ("latin", "<think>two and two</think><answer>四</answer>", 1.0),
        ("latin", "<think>two 和 two</think>", 2 / 3),
        ("han", "<think>two 和 two</think>", 1 / 3),
        ("han", "<think>二加二等于四</think>", 1.0),
        ("han", "<think>二加二 is four</think>", 3 / 5),
        ("latin", "<think>CPU的</think>", 1 / 2),
        ("cyrillic", "<think>два и two</think>", 2 / 3),
        ("japanese", "<think>二たす二は four</think>", 5 / 6),
        ("han", "<think>二たす二は</think>", 2 / 5),
        ("hangul", "<think>이 더하기 이는</think>", 1.0),
        ("latin", "<think>\uff21\uff22 cafe\u0301 naïve</think>", 1.0),
        ("latin", "<think>8 - 0 = 8</think>", 0.0),
        ("latin", "<think></think>words after", 0.0),
        ("latin", "", 0.0),
        ("latin", "no tags at all", 1.0),
        ("latin", "it was open 二</think>二", 3 / 4),
        ("latin", "<think>cut off 二", 2 / 3),
    ],
)
def test_share_of_words_in_the_script(script: str, completion: str, expected: float) -> None:
    assert share(script, completion) == pytest.approx(expected)


def test_reasoning_is_the_first_think_element() -> None:
    assert reasoning("a</think>b<think>c</think>") == "a"
    assert reasoning("x<think>a</think>b<think>c</think>") == "a"


def test_every_script_names_letters_that_exist() -> None:
    letters = dict(zip(SCRIPTS, "عжह\u03b1和한עのaก", strict=True))
    for script, letter in letters.items():
        assert share(script, letter) == 1.0, script


def test_an_accent_does_not_end_a_word() -> None:
    assert list(words_by_script("cafe\u0301s")) == ["LATIN"]
    assert list(words_by_script("\u0301 \ud800 \x00")) == []


def test_many_words_take_linear_time() -> None:
    started = time.perf_counter()
    assert share("latin", "<think>" + "a 二" * 100_000) == 0.5
    assert time.perf_counter() - started < 2


def test_unknown_script_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown script 'latn': did you mean latin\?"):
        LanguageConsistency("latn")
    assert LanguageConsistency("han")([]).shape == (0,)
