import copy
import pickle
import threading
import time

import pytest
import torch

from posttrain.rewards import AnswerReward, Sample
from posttrain.rewards.answer import answers_equal, compare_answers, extract_answer
from posttrain.rewards.judge import Verdict

ENDLESS = "9^{9^{9^{9}}}"


def sample(completion: str, answer: str) -> Sample:
    return Sample(prompt="", completion=completion, answer=answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 42 </answer>", "42"),
        ("<think>so <answer>1</answer></think><answer>2</answer>", "2"),
        ("<answer>1</answer> <answer>2</answer>", "2"),
        ("<answer>1</answer> <answer>2", "1"),
        ("<answer>1</answer> 2</answer>", "1"),
        ("<answer>1 <answer>2</answer>", "2"),
        ("<answer></answer>", ""),
        (r"so \boxed{3}", "3"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x }", r"\left\{ x"),
        (r"\boxed{a \\}", r"a \\"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"{ \boxed{4}", "4"),
        (r"<answer>it is \boxed{5}.</answer>", "5"),
        (r"<answer>6</answer> \boxed{7}", "6"),
        (r"<answer>\boxed{6</answer> \boxed{7}", r"\boxed{6"),
        (r"\boxed{8} </think> <answer>9</answer>", "9"),
        ("a</think><answer>1</answer></think><answer>2</answer>", "2"),
    ],
)
def test_extract_answer_finds_the_last_closed_one(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "<answer>42",
        "42</answer>",
        "<ANSWER>42</ANSWER>",
        r"\boxed{42",
        r"\boxed 42",
        r"\boxed{4 {2}",
        "<answer>1</answer></think>",
        r"\boxed{1}</think> so it is 1",
    ],
)
def test_extract_answer_finds_nothing_where_nothing_is_closed(text: str) -> None:
    assert extract_answer(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" * 50_000,
        "</answer>" * 50_000,
        r"\boxed{" * 50_000,
        r"\boxed{" * 50_000 + "}" * 49_999,
        "{" * 200_000,
        "}" * 200_000,
        "\\" * 200_000,
        "</think>" * 50_000,
        "<" * 200_000,
    ],
)
def test_extract_answer_takes_linear_time(text: str) -> None:
    started = time.perf_counter()
    extract_answer(text)
    assert time.perf_counter() - started < 1


def test_answer_reward_scores_each_sample() -> None:
    reward = AnswerReward()
    rewards = reward(
        [
            sample("<think>1+1</think><answer>2</answer>", "2"),
            sample("<answer>1,000.0</answer>", "1e3"),
            sample("<answer>3</answer>", "2"),
            sample("2", "2"),
            sample(r"\boxed{blue}", "blue"),
            sample(r"<answer>\frac{1}{3}</answer>", "2/6"),
            sample("<answer>x^2 + 2x + 1</answer>", "(x+1)^2"),
        ]
    )
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == [1, 1, 0, 0, 1, 1, 1]
    assert reward.timeouts == 0
    assert reward([]).shape == (0,)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"2\sqrt{2}", r"\sqrt{8}"),
        (r"\frac12", "0.5"),
        (r"\text{yes}", "yes"),
        ("$42$", "42"),
        (r"\(42\)", "42"),
        ("x=3", "3"),
        ("6*7", "42"),
        ("2**10", "1024"),
        ("10^3", "1e3"),
        ("1{,}234", "1,234"),
        (r"\{2, 1\}", r"\{1, 2\}"),
        ("(A)", "A"),
    ],
)
def test_answers_equal_understands_mathematics(answer: str, gold: str) -> None:
    assert answers_equal(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("0.333333", "1/3"),
        ("40 41 42", "42"),
        ("41, 42", "42"),
        ("12,34", "1234"),
        (r"\frac12", "0.25"),
        ("silent", "listen"),
        ("C B A", "A B C"),
        ("", "42"),
        ("1/0", "2/0"),
        (r"\frac{", "42"),
    ],
)
def test_answers_equal_tells_different_answers_apart(answer: str, gold: str) -> None:
    assert not answers_equal(answer, gold)


def test_compare_answers_keeps_the_order_of_pairs_of_every_kind() -> None:
    pairs = [("x+1", "1+x"), ("1", "1.0"), ("x+1", "x"), ("no", "yes"), ("x+1", "1+x")]
    equal, different = Verdict.EQUAL, Verdict.DIFFERENT
    assert compare_answers(pairs) == [equal, equal, different, different, equal]


def test_answer_reward_counts_a_timeout_and_goes_on() -> None:
    answers_equal("x", "y")  # the first start is not what is measured here
    reward = AnswerReward(seconds=0.3)
    started = time.perf_counter()
    endless = sample(f"<answer>{ENDLESS}</answer>", "1")
    rewards = reward([endless, sample("<answer>a+b</answer>", "b+a"), endless])
    assert rewards.tolist() == [0, 1, 0]
    assert reward.timeouts == 2
    assert time.perf_counter() - started < 5
    assert reward([sample("<answer>a-b</answer>", "-b+a")]).tolist() == [1]
    assert reward.timeouts == 2


def test_answer_reward_keeps_its_limit_outside_the_main_thread() -> None:
    reward, results = AnswerReward(seconds=0.3), []

    def score() -> None:
        results.append(reward([sample(rf"\boxed{{{ENDLESS}}}", "1"), sample(r"\boxed{2x}", "x*2")]))

    threads = [threading.Thread(target=score) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [result.tolist() for result in results] == [[0, 1], [0, 1]]
    assert reward.timeouts == 2


def test_answer_reward_is_a_config_that_can_be_copied() -> None:
    reward = AnswerReward(seconds=2.0)
    reward.timeouts = 3
    assert reward == AnswerReward(2.0)
    assert repr(reward) == "AnswerReward(seconds=2.0)"
    assert pickle.loads(pickle.dumps(reward)) == copy.deepcopy(reward) == reward


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_answer_reward_refuses_a_limit_that_is_none(seconds: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        AnswerReward(seconds=seconds)
