from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.streams import key
from posttrain.data.contrasts import contrast, contrast_row, preferences_of, with_replay
from posttrain.data.preference_files import load_preferences
from posttrain.data.tasks import Prompt
from posttrain.rewards import Sample


def sample(text: str, reason: str = "stop") -> Sample:
    return Sample(prompt="2 + 2", completion=text, answer="4", finish_reason=reason)


def test_replay_is_the_share_of_the_whole_mix() -> None:
    # A tenth of the mix: of 9 new ones 1 earlier, 1 / (9 + 1); of 27, 3 / (27 + 3).
    for new, earlier in ((9, 1), (18, 2), (27, 3), (270, 30)):
        mix = with_replay(["n"] * new, ["e"] * 100, replay=0.1, seed=4)
        assert mix == ["n"] * new + ["e"] * earlier
    assert with_replay(["n"] * 6, ["e"] * 9, replay=0.5, seed=4) == ["n"] * 6 + ["e"] * 6
    assert with_replay(["n"] * 6, ["e"] * 2, replay=0.5, seed=4) == ["n"] * 6 + ["e"] * 2
    assert with_replay(["n"] * 6, [], replay=0.5, seed=4) == ["n"] * 6
    assert with_replay(["n"] * 6, ["e"] * 9, replay=0.0, seed=4) == ["n"] * 6


def test_which_are_replayed_is_keyed_by_seed_and_place() -> None:
    # half of the mix for 3 new ones: the 3 places of 8 with the smallest keys, in their order
    chosen = {}
    for seed in range(4):
        places = sorted(range(8), key=lambda i, seed=seed: key(seed, "replay", 0, i))[:3]
        chosen[seed] = with_replay("new", "abcdefgh", replay=0.5, seed=seed)[3:]
        assert chosen[seed] == ["abcdefgh"[i] for i in sorted(places)]
    assert len({tuple(x) for x in chosen.values()}) > 1


@pytest.mark.parametrize("replay", [-0.1, 1.0, 2.0, float("nan")])
def test_a_share_outside_of_its_range_is_refused(replay: float) -> None:
    with pytest.raises(ValueError, match=r"replay=.*less than 1"):
        with_replay([1], [2], replay=replay, seed=0)


def test_right_ones_are_paired_with_wrong_ones_and_the_rest_is_counted() -> None:
    samples = [
        sample("4"), sample("5"), sample("4", "length"), sample(" "), sample("four"), sample("5"),
    ]  # fmt: skip
    scores = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    found = contrast(samples, scores, most=9, seed=1)
    # Right are 0 and 4; wrong are 1 and 5, which are equal: one pair, with 1.
    assert found.pairs in (((0, 1),), ((4, 1),))
    assert found.counts == {
        "prompts": 1, "one-sided": 0, "pairs": 1,
        "sampled": 6, "right": 2, "wrong": 2, "truncated": 1, "empty": 1,
    }  # fmt: skip


def test_pairs_share_no_completion_and_are_keyed() -> None:
    samples = [sample(str(i)) for i in range(8)]
    scores = [1.0] * 4 + [0.5] * 4  # half right is wrong
    chosen = set()
    for seed in range(5):
        pairs = contrast(samples, scores, most=3, seed=seed).pairs
        assert contrast(samples, scores, most=3, seed=seed).pairs == pairs
        assert len({i for pair in pairs for i in pair}) == 6
        assert all(right < 4 <= wrong for right, wrong in pairs)
        assert contrast(samples, scores, most=1, seed=seed).pairs == pairs[:1]
        chosen.add(pairs)
    assert len(chosen) > 1
    half = contrast(samples, scores, most=9, right=0.5)
    assert half.pairs == ()
    assert (half.counts["one-sided"], half.counts["right"]) == (1, 8)


def test_rows_are_what_a_file_of_preferences_holds(tmp_path: Path) -> None:
    prompt = Prompt(answer="4", messages=({"role": "user", "content": "2 + 2"},))
    rows = [contrast_row(prompt, "4", "five"), contrast_row(prompt, "<think></think>4", "5\n")]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_preferences(path) == preferences_of(rows)
    with pytest.raises(ValueError, match="the prompt is text"):
        contrast_row(Prompt(answer="4", text="2 + 2"), "4", "5")
