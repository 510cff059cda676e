from __future__ import annotations

from collections.abc import Iterator

import pytest

from posttrain.eval import Overlap, contaminated

LONG = "Tom has nine red apples and gives three of them to his sister Ann before lunch"


def test_thirteen_words_in_a_row_are_an_overlap() -> None:
    words = LONG.split()  # 16 of them: four 13-grams, of which training holds the first two
    train = ["something else", f"Yesterday: {' '.join(words[:14])} today.", " ".join(words[:13])]
    assert contaminated(train, ["fresh and new", LONG]) == [
        Overlap(1, 1, 2 / 4, " ".join(words[:13]).lower())
    ]
    assert contaminated([" ".join(words[:12])], [LONG]) == []


def test_case_and_punctuation_do_not_count_but_operators_do() -> None:
    assert contaminated([LONG.upper().replace(" ", ", ") + "!"], [LONG])[0].share == 1.0
    assert contaminated(["3 - 4"], ["3 + 4"]) == []
    assert contaminated(["3+4 ="], ["3 + 4="])[0].text == "3 + 4 ="


def test_short_prompt_overlaps_only_with_the_whole_of_another() -> None:
    assert contaminated(["1 + 3 + 4", "3 + 4"], ["3 + 4"]) == [Overlap(0, 1, 1.0, "3 + 4")]
    assert contaminated(["1 + 3 + 4"], ["3 + 4"]) == []
    assert contaminated(["1 + 3 + 4"], ["3 + 4"], n=3)[0].train == 0


def test_wording_that_many_prompts_share_is_no_overlap() -> None:
    wording = "please think step by step and then write the final answer in a box now"
    heldout = [f"{wording} {i}" for i in range(11)]
    found = contaminated([f"{wording} 99", f"{wording} 7"], heldout)
    assert [overlap.heldout for overlap in found] == [7]  # the gram that ends with 7
    assert len(contaminated([f"{wording} 99"], heldout, common=11)) == 11


def test_training_is_read_once() -> None:
    def lazily() -> Iterator[str]:
        yield from ("a", "b")

    assert contaminated(lazily(), ["B", "c"]) == [Overlap(0, 1, 1.0, "b")]
    assert contaminated([], ["..."]) == []


@pytest.mark.parametrize(
    ("heldout", "changes", "message"),
    [
        ([], {}, "no held-out prompts"),
        (["a"], {"n": 0}, "n=0"),
        (["a"], {"common": 0}, "common=0"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    heldout: list[str], changes: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        contaminated(["a"], heldout, **changes)
