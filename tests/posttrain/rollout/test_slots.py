from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rollout.slots import arranged


@given(
    lines=st.integers(1, 60),
    group=st.sampled_from([1, 2, 3, 4, 8]),
    share=st.floats(0, 1),
    prompt_cost=st.sampled_from([0.0, 0.5, 4.0]),
    seed=st.integers(0, 1000),
)
def test_every_alive_slot_stays_exactly_once_in_a_line_of_its_prompt(
    lines: int, group: int, share: float, prompt_cost: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    alive = torch.rand(lines, group, generator=g) < share
    alive[0, 0] = True
    slots = arranged(alive, prompt_cost)
    if slots is None:
        return
    assert slots.shape[0] * (slots.shape[1] + prompt_cost) <= 0.75 * lines * (group + prompt_cost)
    assert bool((slots // group == slots[:, :1] // group).all())
    flat = slots.view(-1)
    assert len(flat.unique()) == len(flat)
    kept = flat[alive.view(-1)[flat]]
    assert sorted(kept.tolist()) == alive.view(-1).nonzero().view(-1).tolist()


def test_nothing_moves_while_most_are_alive() -> None:
    alive = torch.ones(8, 2, dtype=torch.bool)
    alive[0] = False
    assert arranged(alive, 0.0) is None


def test_long_prompts_keep_their_groups_together() -> None:
    alive = torch.zeros(4, 4, dtype=torch.bool)
    alive[0], alive[1, :2] = True, True
    # one slot a line would read the two prompts six times
    assert arranged(alive, 8.0).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert arranged(alive, 0.0).tolist() == [[0, 1], [2, 3], [4, 5]]
