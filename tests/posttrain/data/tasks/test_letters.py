import pytest

from posttrain.data.tasks import BackwardLetters
from posttrain.rewards import Sample


def test_every_word_is_in_one_part_and_answered_backwards() -> None:
    task = BackwardLetters(length=2, letters="abc")
    parts = [[(p.text, p.answer) for p in part] for part in (task.train(), task.heldout())]
    assert [len(part) for part in parts] == [7, 2]
    assert sorted(parts[0] + parts[1]) == sorted((f"{a}{b}=", b + a) for a in "abc" for b in "abc")


def test_pays_for_the_exact_answer_alone() -> None:
    task = BackwardLetters()
    said = ("bgcf", "bgc", "bgcff", "fcgb", "")
    samples = [Sample(prompt="fcgb=", completion=text, answer="bgcf") for text in said]
    assert task.reward(samples).tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"length": 1}, "length=1"),
        ({"length": 6}, "length=6"),
        ({"letters": "aab"}, "letters='aab'"),
        ({"letters": "a"}, "letters='a'"),
    ],
)
def test_refuses_what_makes_no_task(changes: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BackwardLetters(**changes)  # type: ignore[arg-type]  # one field at a time
