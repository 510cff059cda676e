import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.eval import Evaluation
from posttrain.recipes.account import account, split_gain
from posttrain.rewards import Sample

share = st.floats(0, 1)
parts = st.tuples(share, share, share)


@given(parts, parts)
def test_parts_of_a_gain_add_up_to_it(
    before: tuple[float, float, float], after: tuple[float, float, float]
) -> None:
    def accuracy(s: float, r: float, d: float) -> float:
        return s * r + (1 - s) * d

    gain = split_gain(before, after)
    assert gain.total == pytest.approx(accuracy(*after) - accuracy(*before), abs=1e-12)


def test_gain_of_reasoning_more_often_alone_is_choosing() -> None:
    gain = split_gain((0.25, 0.8, 0.2), (1.0, 0.8, 0.2))
    assert gain.choosing == pytest.approx(0.45)
    assert (gain.reasoning, gain.answering) == (0.0, 0.0)


def evaluation(*rows: tuple[str, bool]) -> Evaluation:
    samples = tuple((Sample(prompt="", completion=text, answer="1"),) for text, _ in rows)
    return Evaluation(samples=samples, correct=torch.tensor([[right] for _, right in rows]))


def test_account_tells_the_parts_and_what_stays_unsolved() -> None:
    thought, silent = "<think>1</think><answer>1</answer>", "<think></think><answer>1</answer>"
    before = evaluation((thought, True), (silent, False), (silent, False), (silent, True))
    after = evaluation((thought, True), (thought, True), (thought, False), (thought, True))
    far = evaluation((thought, False), (thought, False))
    text = account(before, after, far)
    # before: s = 1/4, r = 1, d = 1/3, accuracy 1/2; after: s = 1, r = 3/4, accuracy 3/4
    assert "from 0.500 to 0.750" in text
    assert "gain of 0.250, **0.500 is choosing to reason**" in text
    assert "**-0.250 is better arithmetic" in text
    assert "stay mostly unsolved: 0% right" in text
