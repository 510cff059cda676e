import pytest

from posttrain.eval import maj_at_k
from posttrain.search.self_consistency import Vote, self_consistency


def test_vote_of_hand_worked_answers() -> None:
    # 1/2 and 0.5 are one cluster of weight 2 of 5; the sample without an answer counts in 5.
    assert self_consistency(["3", "1/2", None, "0.5", "4"]) == Vote(
        "1/2", 0.4, {"3": 1.0, "1/2": 2.0, "4": 1.0}, 1
    )


def test_weights_decide_where_they_differ() -> None:
    assert self_consistency(["3", "4", "4"], weights=[0.75, 0.25, 0.25]) == Vote(
        "3", 0.6, {"3": 0.75, "4": 0.5}, 0
    )
    assert self_consistency(["3", "4"], weights=[0.0, 0.0]) == Vote("3", 0.0, {"3": 0, "4": 0}, 0)


def test_of_equally_heavy_clusters_the_first_wins() -> None:
    assert self_consistency(["b", "a", "a", "b"]).answer == "b"


def test_samples_without_answers_elect_nothing() -> None:
    assert self_consistency([None, None]) == Vote(None, 0.0, {}, 2)


def test_own_equality_is_asked_once_for_each_text() -> None:
    asked = []

    def equal(answer: str, head: str) -> bool:
        asked.append((answer, head))
        return answer.lower() == head.lower()

    found = self_consistency(["A", "a", "a", "B", "A"], equal=equal)
    assert found.clusters == {"A": 4.0, "B": 1.0}
    assert asked == [("a", "A"), ("B", "A")]


@pytest.mark.parametrize(
    "answers", [["1", "2", "2.0", "1"], [None, "2", "4/2"], ["x", "1", "1"], ["1", None, "2"]]
)
def test_vote_agrees_with_maj_at_k(answers: list[str | None]) -> None:
    winner = self_consistency(answers).answer
    assert winner is not None
    assert maj_at_k([answers], [winner], len(answers)).item() == 1.0


@pytest.mark.parametrize(
    ("answers", "weights", "message"),
    [
        ([], None, "no answers"),
        (["1"], [1.0, 2.0], "2 weights for 1"),
        (["1"], [-1.0], "weight 0 is -1.0"),
        (["1"], [float("nan")], "weight 0 is nan"),
    ],
)
def test_what_cannot_vote_is_refused(
    answers: list[str | None], weights: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        self_consistency(answers, weights=weights)
