from __future__ import annotations

import json

import pytest

from posttrain.data.instruction_pairs import instruction_pairs
from posttrain.data.tasks import Arithmetic, Instructions
from posttrain.data.tasks.constraints import KINDS, read_constraints


def test_chosen_meets_every_constraint_and_rejected_breaks_the_one_it_says() -> None:
    prompts = Instructions(most=7).train()[:1500]
    seen = set()
    for pair in instruction_pairs(prompts, seed=0):
        seen.add(type(pair.broken))
        for constraint in read_constraints(pair.prompt.answer):
            assert constraint.holds(pair.chosen), (constraint, pair.chosen)
            kept = constraint != pair.broken
            assert constraint.holds(pair.rejected) is kept, (constraint, pair)
    assert seen == set(KINDS)


def test_pairs_depend_on_seed_and_index_alone() -> None:
    prompts = Instructions().train()
    assert instruction_pairs(prompts[:3], seed=1) == instruction_pairs(prompts[:9], seed=1)[:3]
    assert instruction_pairs(prompts[:3], seed=1) != instruction_pairs(prompts[:3], seed=2)


def test_row_is_what_a_file_of_pairs_holds() -> None:
    [pair] = instruction_pairs(Instructions(system="Obey.").heldout()[:1], seed=0)
    row = json.loads(json.dumps(pair.row()))
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert (row["chosen"], row["rejected"]) == (pair.chosen, pair.rejected)
    [plain] = instruction_pairs(Instructions(form="text").heldout()[:1], seed=0)
    assert isinstance(plain.row()["prompt"], str)


def test_prompts_without_constraints_are_refused() -> None:
    with pytest.raises(ValueError, match="are no constraints"):
        instruction_pairs(Arithmetic().train()[:1], seed=0)
