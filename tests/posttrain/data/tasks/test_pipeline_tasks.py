"""What the five data sources of the R1 pipeline have in common, and what is each one's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from posttrain.data.tasks import Prompt, Refusals, Requests, Task, ToldSums, WordLists
from posttrain.data.tasks.told_sums import worked_words
from posttrain.rewards import FormatReward, Sample

Make = Callable[..., Task]
MAKES: dict[str, Make] = {
    "english": ToldSums,
    "russian": lambda **changes: ToldSums("russian", **changes),
    "lists": WordLists,
    "requests": Requests,
    "refusals": Refusals,
}
FIELDS = {"sum": r"[-+ \d]+", "words": r"[a-z, ]+"}
EACH = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


def asked(prompt: Prompt) -> str:
    (message,) = prompt.messages or ()
    assert message["role"] == "user"
    return message["content"]


def samples(prompts: list[Prompt], reply: str) -> list[Sample]:
    return [Sample(prompt="", completion=p.metadata[reply], answer=p.answer) for p in prompts]


def said(text: str, answer: str) -> Sample:
    return Sample(prompt="", completion=text, answer=answer)


@EACH
def test_the_first_hundred_thousand_hold_ten_thousand_distinct_prompts(make: Make) -> None:
    prompts = make().train()
    assert len(prompts) == 100_000
    texts: set[str] = set()
    for index in range(len(prompts)):
        texts.add(asked(prompts[index]))
        if len(texts) == 10_000:
            return
    pytest.fail(f"only {len(texts)} distinct prompts")


@EACH
def test_no_heldout_wording_occurs_in_training(make: Make) -> None:
    train, heldout = list(make().train()[:4_000]), list(make().heldout())
    assert len(heldout) == 512
    wordings = {p.metadata["wording"] for p in heldout}
    assert len(wordings) == 3
    for wording in wordings:
        told = re.compile(
            re.sub(r"\\{(\w+)\\}", lambda field: FIELDS.get(field[1], r"\w+"), re.escape(wording))
        )
        assert not any(told.fullmatch(asked(p)) for p in train)
        assert any(told.fullmatch(asked(p)) for p in heldout)


@EACH
def test_good_replies_are_paid_and_bad_ones_are_not(make: Make) -> None:
    task = make()
    prompts = [*task.train()[:400], *task.heldout()[:100]]
    for reply, paid in (("good", 1.0), ("bad", 0.0)):
        assert task.reward(samples(prompts, reply)).tolist() == [paid] * 500
        assert FormatReward()(samples(prompts, reply)).tolist() == [1.0] * 500


@EACH
def test_prompts_depend_on_seed_and_index_alone(make: Make) -> None:
    assert make().train()[9] == make(size=10).train()[9]
    assert make().heldout()[9] == make(heldout_size=10).heldout()[9]
    assert list(make().train()[:20]) != list(make(seed=1).train()[:20])


@EACH
def test_sizes_are_checked(make: Make) -> None:
    with pytest.raises(ValueError, match=r"size=0, heldout_size=512: expected at least 1"):
        make(size=0)
    with pytest.raises(ValueError, match=r"heldout_size=-1"):
        make(heldout_size=-1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": "klingon"}, "expected english or russian"),
        ({"terms": (1, 3)}, r"terms=\(1, 3\): expected the least"),
        ({"terms": (5, 4)}, r"terms=\(5, 4\)"),
    ],
)
def test_settings_of_sums_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToldSums(**changes)


@pytest.mark.parametrize(
    ("expression", "english", "russian"),
    [
        ("5", "", ""),
        ("3 - 9", "3 minus 9 is -6", "3 минус 9 будет -6"),
        (
            "3 - 9 + 2",
            "3 minus 9 is -6\n-6 plus 2 is -4",
            "3 минус 9 будет -6\n-6 плюс 2 будет -4",
        ),
    ],
)
def test_worked_words_of_hand_worked_sums(expression: str, english: str, russian: str) -> None:
    assert worked_words(expression, "english") == english
    assert worked_words(expression, "russian") == russian


def test_sums_have_as_many_terms_as_asked_for_and_each_number_of_them() -> None:
    seen = set()
    for prompt in ToldSums(terms=(4, 6)).train()[:200]:
        expression = prompt.metadata["expression"]
        assert expression in asked(prompt)
        assert eval(expression) == int(prompt.answer)
        seen.add(len(re.findall(r"\d", expression)))
    assert seen == {4, 5, 6}


def test_a_word_list_has_four_words_and_asks_for_each_place() -> None:
    places = {"first": 0, "second": 1, "third": 2, "last": 3}
    seen = set()
    for prompt in WordLists().heldout():
        before, _, rest = asked(prompt).rpartition(": ")
        words = rest[:-1].split(", ")
        (place,) = set(re.findall(r"\w+", before)) & set(places)
        assert len(set(words)) == 4
        assert words[places[place]] == prompt.answer
        seen.add(place)
    assert seen == set(places)


def test_only_the_very_word_is_paid() -> None:
    replies = ["<answer>Key\n</answer>", "<answer>the key</answer>", "key", "<answer></answer>"]
    rewards = WordLists().reward([said(reply, "key") for reply in replies])
    assert rewards.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_help_is_courteous_and_names_both_words() -> None:
    replies = {
        "<answer>Of course! Here is a kite, red.</answer>": 1.0,
        "<answer>Of course! Here is a kite.</answer>": 0.0,
        "<answer>Here is the red kite.</answer>": 0.0,
        "<answer>Gladly. The redder kites are here.</answer>": 0.0,
        "Gladly. The red kite.": 0.0,
    }
    rewards = Requests().reward([said(reply, "red kite") for reply in replies])
    assert rewards.tolist() == list(replies.values())


def test_some_bad_replies_to_requests_are_curt_and_others_off_the_point() -> None:
    courteous = [
        "Gladly" in bad or "pleasure" in bad or "course" in bad
        for bad in (p.metadata["bad"] for p in Requests().train()[:400])
    ]
    assert 165 <= sum(courteous) <= 235  # 200 expected, deviation 10


def test_a_half_asks_for_harm_and_is_to_be_refused() -> None:
    prompts = list(Refusals().train()[:400])
    verbs: dict[bool, set[str]] = {True: set(), False: set()}
    for prompt in prompts:
        harmful = prompt.metadata["harmful"]
        assert prompt.answer == ("refuse" if harmful else "help")
        (verb,) = re.findall(r"to (\w+) it|To (\w+) it", prompt.metadata["good"])
        verbs[harmful].add("".join(verb))
    assert [len(verbs[harmful]) for harmful in (True, False)] == [8, 8]
    assert verbs[True].isdisjoint(verbs[False])
    assert 165 <= sum(p.metadata["harmful"] for p in prompts) <= 235  # 200 expected, deviation 10


def test_neither_refusing_everything_nor_saying_nothing_is_paid() -> None:
    reward = Refusals().reward
    no, yes, nothing = (
        "<answer>I will not.</answer>",
        "<answer>Yes.</answer>",
        "<answer></answer>",
    )
    for answer, paid in (("refuse", [1.0, 0.0, 0.0, 0.0]), ("help", [0.0, 1.0, 0.0, 0.0])):
        assert reward([said(s, answer) for s in (no, yes, nothing, "Yes.")]).tolist() == paid
