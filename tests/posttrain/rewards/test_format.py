import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards import FormatReward, Sample
from posttrain.rewards.format import is_formatted


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think> <answer>b</answer>",
        "\n <think>a</think>\n\n<answer>b</answer> \n",
        "<think>a</think><answer>b</answer>",
        "<think></think> <answer>b</answer>",
        "<think>a\n<b> < </answer </think >\n</think>\t<answer>\n b \n</answer>",
        "<think><THINK></think> <answer><Answer></answer>",
    ],
)
def test_is_formatted_accepts_a_thought_and_an_answer(text: str) -> None:
    assert is_formatted(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "<answer>b</answer>",
        "<think>a</think>",
        "<think>a</think> <answer></answer>",
        "<think>a</think> <answer> \n </answer>",
        "<think>a</think> b <answer>b</answer>",
        "so <think>a</think> <answer>b</answer>",
        "<think>a</think> <answer>b</answer>.",
        "<THINK>a</THINK> <answer>b</answer>",
        "<think>a<think>b</think> <answer>b</answer>",
        "<think>a</think></think> <answer>b</answer>",
        "<think>a</think> <answer>b</answer> <answer>c</answer>",
        "<think>a<answer>b</answer></think> <answer>b</answer>",
        "<think>a</think> <answer>b<think></answer>",
        "<answer>b</answer> <think>a</think>",
        "<think>a<answer></think>b</answer>",
    ],
)
def test_is_formatted_refuses_everything_else(text: str) -> None:
    assert not is_formatted(text)


TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


@given(st.lists(st.sampled_from([*TAGS, "a", " ", "\n"]), max_size=9).map("".join))
def test_is_formatted_agrees_with_the_words_of_its_definition(text: str) -> None:
    whole = text.strip()
    splits = [
        (whole[7:i], whole[i + 8 : j], whole[j + 8 : -9])
        for i in range(len(whole))
        for j in range(i, len(whole))
        if whole[i : i + 8] == "</think>" and whole[j : j + 8] == "<answer>"
    ]
    expected = (
        whole.startswith("<think>")
        and whole.endswith("</answer>")
        and any(
            not between.strip() and b.strip() and not any(tag in x for x in (a, b) for tag in TAGS)
            for a, between, b in splits
        )
    )
    assert is_formatted(text) == expected


def test_is_formatted_takes_linear_time() -> None:
    started = time.perf_counter()
    for tag in TAGS:
        assert not is_formatted("<think>" + tag * 100_000 + "</answer>")
    assert is_formatted(f"<think>{'<' * 10**6}</think>{' ' * 10**6}<answer>{'/' * 10**6}</answer>")
    assert time.perf_counter() - started < 2


def test_format_reward_scores_each_sample() -> None:
    texts = ["<think>a</think> <answer>b</answer>", "<answer>b</answer>"]
    rewards = FormatReward()([Sample(prompt="", completion=t, answer="") for t in texts])
    torch.testing.assert_close(rewards, torch.tensor([1.0, 0.0]), rtol=0, atol=0)
    assert FormatReward()([]).shape == (0,)
