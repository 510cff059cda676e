from pathlib import Path

import pytest

from launch.config import override
from launch.errors import UsageError
from posttrain.recipes.jobs import GRPOJob
from posttrain.rewards import AnswerReward, CodeReward, FormatReward, Sample, parse_reward

SOURCE = """
import torch
def longer(samples):
    return torch.tensor([float(len(s.completion)) for s in samples])
class Zero:
    def __call__(self, samples):
        return torch.zeros(len(samples))
class Needy:
    def __init__(self, what): pass
NUMBER = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "rewards_of_a_user.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return "rewards_of_a_user"


def test_parse_reward_knows_its_own_and_the_users(module: str) -> None:
    samples = [Sample(prompt="", completion="abc", answer="")]
    assert parse_reward(" answer ") == AnswerReward()
    assert parse_reward("format") == FormatReward()
    assert parse_reward("code") == CodeReward()
    assert parse_reward(f"{module}:longer")(samples).tolist() == [3]
    assert parse_reward(f"{module}:Zero")(samples).tolist() == [0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("anser", "did you mean answer"),
        ("", "expected answer, format, code or module:name"),
        ("rewards_of_a_user:longr", "did you mean longer"),
        ("rewards_of_a_user:Needy", r"Needy\(\) raised TypeError"),
        ("rewards_of_a_user:NUMBER", "is a int, which cannot be called"),
        ("no_such_module:reward", "no_such_module cannot be imported"),
    ],
)
def test_parse_reward_says_what_is_wrong(module: str, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_reward(text)


def test_a_reward_that_is_not_found_is_called_a_reward_once() -> None:
    with pytest.raises(UsageError, match=r"^reward: no_such_module cannot be imported"):
        override(GRPOJob(), {"reward": "no_such_module:mine"})
