from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.rejection import OneScript, Selection, Within, merge, select
from posttrain.rewards import Sample


def sample(prompt: str, completion: str, *, cut: bool = False, tokens: int = 3) -> Sample:
    reason = "length" if cut else "stop"
    return Sample(
        prompt=prompt,
        completion=completion,
        answer="4",
        tokens=tuple(range(tokens)),
        finish_reason=reason,
    )


def test_each_reason_is_counted_once_and_the_first_one_counts() -> None:
    samples = [
        sample("2+2", "it is 4"),
        sample("2+2", "it is 5"),  # wrong
        sample("2+2", "it is 4 and", cut=True),  # truncated, though its score is 1
        sample("2+2", "it  is\n4"),  # the words of the first: duplicate
        sample("2+2", "это 4"),  # mixed language
        sample("2+2", "so long, so very long: 4", tokens=9),  # too long
        sample("2+2", "это 5", cut=True),  # wrong and mixed as well
        sample("1+3", "it is 4"),  # of another prompt, so no duplicate
        sample("1+3", " \n"),  # empty
    ]
    scores = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    keep = (OneScript("latin"), Within(8))
    assert select(samples, scores, most_per_prompt=4, seed=0, keep=keep) == Selection(
        kept=(0, 7),
        counts={
            "sampled": 9,
            "truncated": 2,
            "wrong": 1,
            "empty": 1,
            "mixed language": 1,
            "too long": 1,
            "duplicate": 1,
            "over cap": 0,
            "kept": 2,
        },
    )


def test_reward_above_right_is_right_and_right_can_be_asked_for_less() -> None:
    samples = [sample("a", "x"), sample("a", "y"), sample("a", "z")]
    found = select(samples, [1.1, 0.5, 0.4], most_per_prompt=9, seed=0)
    assert found.kept == (0,)
    assert select(samples, [1.1, 0.5, 0.4], most_per_prompt=9, seed=0, right=0.5).kept == (0, 1)


def test_cap_takes_every_completion_equally_often() -> None:
    samples = [sample("a", f"way {i}") for i in range(4)]
    drawn = Counter(
        i
        for seed in range(400)
        for i in select(samples, [1] * 4, most_per_prompt=1, seed=seed).kept
    )
    # Binomial with 400 draws of 1/4: mean 100, standard deviation 8.66.
    assert all(abs(drawn[i] - 100) < 4 * 8.66 for i in range(4))
    found = select(samples, [1] * 4, most_per_prompt=3, seed=0)
    assert (len(found.kept), found.counts["over cap"]) == (3, 1)


@given(order=st.permutations(range(12)), cut=st.integers(0, 12), seed=st.integers(0, 99))
def test_neither_order_nor_parts_change_what_is_kept(order: list[int], cut: int, seed: int) -> None:
    samples = [sample(f"prompt {i % 3}", f"way {i % 5}") for i in range(12)]
    scores = [float(i != 7) for i in range(12)]

    def texts(chosen: list[Sample], found: Selection) -> set[tuple[str, str]]:
        return {(chosen[i].prompt, chosen[i].completion) for i in found.kept}

    whole = select(samples, scores, most_per_prompt=2, seed=seed)
    turned = [samples[i] for i in order]
    marks = [scores[i] for i in order]
    other = select(turned, marks, most_per_prompt=2, seed=seed)
    assert texts(turned, other) == texts(samples, whole)
    parts, counts = [], Counter[str]()
    for some, some_marks in ((turned[:cut], marks[:cut]), (turned[cut:], marks[cut:])):
        found = select(some, some_marks, most_per_prompt=2, seed=seed)
        parts += [some[i] for i in found.kept]
        counts.update(found.counts)
    again = select(parts, [1.0] * len(parts), most_per_prompt=2, seed=seed)
    assert texts(parts, again) == texts(samples, whole)
    total = merge(counts, again.counts)
    assert total["kept"] == whole.counts["kept"]
    assert sum(total.values()) == 2 * total["sampled"] == 24


def test_script_looks_at_all_words_but_at_no_tag() -> None:
    russian = sample("a", "<think>два и два, то есть 2 + 2</think><answer>4</answer>")
    assert OneScript("cyrillic")(russian)
    assert not OneScript("latin")(russian)
    mixed = sample("a", "<think>one two three</think><answer>четыре</answer>")
    assert not OneScript("latin")(mixed)
    assert OneScript("latin", least=0.75)(mixed)  # three words of four


def test_bad_input_is_named() -> None:
    one = [sample("a", "x")]
    with pytest.raises(ValueError, match="got 1 samples, but scores of 2"):
        select(one, [1.0, 1.0], most_per_prompt=1, seed=0)
    with pytest.raises(ValueError, match="expected one number for each"):
        select(one, torch.ones(1, 1), most_per_prompt=1, seed=0)
    with pytest.raises(ValueError, match="most_per_prompt=0"):
        select(one, [1.0], most_per_prompt=0, seed=0)
    with pytest.raises(ValueError, match="did you mean latin"):
        OneScript("latn")
    with pytest.raises(ValueError, match="least=0"):
        OneScript("latin", least=0)
    with pytest.raises(ValueError, match="max_tokens=0"):
        Within(0)
