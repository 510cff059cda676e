from __future__ import annotations

from collections.abc import Callable

import pytest

from launch.config import from_yaml, to_yaml
from posttrain.objectives import DAPO, GRPO
from posttrain.trainers import GRPOConfig, presets
from posttrain.trainers.presets import dapo, grpo_deepseekmath, r1_stage1, r1_zero

PRESETS: dict[str, Callable[[], GRPOConfig]] = {
    name: getattr(presets, name) for name in presets.__all__
}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_preset_is_a_config_that_survives_yaml_and_names_its_source(
    preset: Callable[[], GRPOConfig],
) -> None:
    config = preset()
    assert from_yaml(to_yaml(config), GRPOConfig()) == config
    source = preset.__doc__ or ""
    assert "arXiv" in source or "Nature" in source


def test_names_are_those_that_were_promised() -> None:
    assert set(PRESETS) == {
        "cispo", "dapo", "dr_grpo", "grpo_deepseekmath", "gspo", "r1_stage1", "r1_zero",
        "reinforce_plus_plus", "rloo",
    }  # fmt: skip


def test_batches_are_the_papers() -> None:
    made = {name: preset() for name, preset in PRESETS.items()}
    sizes = {name: cfg.prompts_per_step * cfg.group_size for name, cfg in made.items()}
    assert sizes["grpo_deepseekmath"] == 1_024
    assert sizes["r1_zero"] == sizes["r1_stage1"] == sizes["dapo"] == 512
    assert sizes["dr_grpo"] == 128
    assert sizes["rloo"] == 512
    rollouts = {name: sizes[name] * cfg.minibatches for name, cfg in made.items()}
    assert rollouts["r1_zero"] == rollouts["r1_stage1"] == rollouts["dapo"] == 8_192
    assert rollouts["dr_grpo"] == 1_024
    assert made["gspo"].minibatches == 4


def test_r1_settings_are_the_table_of_the_paper() -> None:
    assert grpo_deepseekmath().objective == GRPO(kl_weight=0.04)
    assert r1_zero().objective == GRPO(kl_weight=0.001)
    assert r1_stage1().objective == GRPO(clip_low=10, clip_high=10, kl_weight=0.001)
    assert r1_stage1().sampling.max_tokens == r1_zero().sampling.max_tokens == 32_768
    assert dapo().objective == DAPO()
    assert dapo().dynamic_sampling is not None
