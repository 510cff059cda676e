import pytest

from posttrain.data.tasks import Arithmetic
from posttrain.rewards import Sample


def test_arithmetic_splits_all_sums() -> None:
    task = Arithmetic(largest=4)
    texts = [[p.text for p in part] for part in (task.train(), task.heldout())]
    assert [len(part) for part in texts] == [20, 5]
    assert sorted(texts[0] + texts[1]) == sorted(f"{a}+{b}=" for a in range(5) for b in range(5))


def test_arithmetic_pays_for_the_sum() -> None:
    (prompt,) = (p for p in Arithmetic().train() if p.text == "7+8=")
    completion = "<answer>15</answer>"
    sample = Sample(prompt="7+8=", completion=completion, answer=prompt.answer)
    assert Arithmetic().reward([sample]).tolist() == [1]


def test_arithmetic_refuses_a_single_sum() -> None:
    with pytest.raises(ValueError, match="largest=0"):
        Arithmetic(largest=0)
