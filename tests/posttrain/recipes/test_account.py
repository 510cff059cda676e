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


THOUGHT, SILENT = "<think>1</think><answer>1</answer>", "<think></think><answer>1</answer>"


def test_account_tells_the_parts_and_what_stays_unsolved() -> None:
    before = evaluation((THOUGHT, True), (SILENT, False), (SILENT, False), (SILENT, True))
    after = evaluation((THOUGHT, True), (THOUGHT, True), (THOUGHT, False), (THOUGHT, True))
    far = evaluation((THOUGHT, False), (THOUGHT, False))
    text = account(before, after, far, paid=("accuracy", "format"))
    # before: s = 1/4, r = 1, d = 1/3, accuracy 1/2; after: s = 1, r = 3/4, accuracy 3/4
    assert "paid for accuracy, format." in text
    assert "from 0.500 to 0.750" in text
    assert "answer at once from 33% to (none)" in text
    # One of four problems changed: its bootstrap reaches down to no change at all.
    assert "No gain can be told from chance: of the change of 0.250 (95% interval 0.000 to" in text
    assert "**0.500 is choosing to reason**" in text
    assert "**-0.250 is better arithmetic" in text
    assert "stay mostly unsolved: 0% right" in text


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (False, True, "So of the gain of 1.000 (95% interval 1.000 to 1.000, over problems)"),
        (True, False, "So accuracy fell: of the change of -1.000 (95% interval -1.000 to -1.000"),
        (True, True, "No gain can be told from chance: of the change of 0.000 (95% interval 0.000"),
    ],
)
def test_account_follows_the_figures(before: bool, after: bool, said: str) -> None:
    # Fewer reason than before, which gains -0.0 where both ways are as good as each other.
    first = evaluation((THOUGHT, before), (THOUGHT, before), (SILENT, before))
    then = evaluation((THOUGHT, after), (SILENT, after), (SILENT, after))
    text = account(first, then, first)
    assert said in text
    assert "-0.000" not in text
    assert "pays" not in text
    assert "paid" not in text
