from __future__ import annotations

import importlib

import pytest

import rl.linear

PARTS = [
    "features",
    "linear_batch",
    "linear_control",
    "linear_exact",
    "linear_expected",
    "linear_online",
]


@pytest.mark.parametrize("part", PARTS)
def test_names_of_the_parts_are_importable_from_the_chapter(part: str) -> None:
    module = importlib.import_module(f"rl.{part}")
    shared = set(module.__all__) & set(rl.linear.__all__)
    assert shared
    for name in shared:
        assert getattr(rl.linear, name) is getattr(module, name)


@pytest.mark.parametrize("name", sorted(set(rl.linear.__all__) - {"Features"}))  # a type alias
def test_every_name_of_the_chapter_says_what_it_is(name: str) -> None:
    assert getattr(rl.linear, name).__doc__
