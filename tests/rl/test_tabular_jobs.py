from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from launch.errors import UsageError
from launch.runtime import Runtime
from rl import recipes
from rl.planning import value_iteration
from rl.tabular_jobs import Grid, Plan, TabularControl
from rl.tabular_schedules import Linear
from rl.temporal_difference import q_learning


def records(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    drop = ("seconds", "speed")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(drop)} for line in lines]


def small() -> TabularControl:
    return replace(
        recipes.q_learning_frozenlake(),
        env="FrozenLake-v1",
        grid=None,
        steps=40_000,
        seeds=3,
        points=4,
    )


def run(job: TabularControl | Plan, folder: Path, *, resume: bool = False) -> None:
    job.check()
    with Runtime(job.runtime, output=folder, seed=job.seed, resume=resume) as runtime:
        job.run(runtime)


def test_a_curve_is_held_against_the_exact_optimum(tmp_path: Path) -> None:
    run(small(), tmp_path / "run")
    found = records(tmp_path / "run")
    assert [r["steps"] for r in found] == [10_000, 20_000, 30_000, 40_000]
    exact = value_iteration("FrozenLake-v1", 0.99).values[0]  # it starts at state 0
    for record in found:
        assert record["optimum"] == pytest.approx(exact, abs=1e-9)
        assert record["value/worst"] <= record["value"] <= exact + 1e-9
    assert found[-1]["value"] > 0.9 * exact
    table = load_file(tmp_path / "run" / "table.safetensors")
    single = [
        q_learning(
            "FrozenLake-v1",
            discount=0.99,
            steps=40_000,
            step_size=small().step_size,
            epsilon=1.0,
            seed=seed,
        ).action_values
        for seed in range(3)
    ]
    np.testing.assert_array_equal(table["action_values"], np.mean(single, axis=0))


def test_a_run_that_is_resumed_equals_one_that_never_stopped(tmp_path: Path) -> None:
    run(small(), tmp_path / "whole")
    job = small()
    with Runtime(job.runtime, output=tmp_path / "cut", seed=0) as runtime:
        saved = runtime._begin_saving

        def save_and_stop(step: int, state: object) -> None:
            saved(step, state)  # type: ignore[arg-type]  # what it was given
            if step == 2:
                raise KeyboardInterrupt

        runtime._begin_saving = save_and_stop  # type: ignore[method-assign]  # stops there
        runtime.due = lambda step, every: step == 2  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            job.run(runtime)
    run(job, tmp_path / "cut", resume=True)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "table.safetensors") for name in ("cut", "whole"))
    np.testing.assert_array_equal(one["action_values"], other["action_values"])


def test_blackjack_is_valued_with_its_natural_starts(tmp_path: Path) -> None:
    falling = Linear(0.3, 0.02, 150_000)
    job = replace(recipes.mc_blackjack(), episodes=200_000, epsilon=falling, seeds=1, points=2)
    run(job, tmp_path / "run")
    last = records(tmp_path / "run")[-1]
    # Standing on 12 or more loses some .08 a game; the best play .0431.
    assert last["optimum"] == pytest.approx(-0.0431131, abs=1e-6)
    assert -0.06 < last["value"] <= last["optimum"]


def test_value_iteration_of_the_grid_world_is_optimal(tmp_path: Path) -> None:
    run(recipes.value_iteration_gridworld(), tmp_path / "run")
    values = load_file(tmp_path / "run" / "table.safetensors")["values"]
    # The target (3, 2) stays for ever at 1 / (1 - .9); (4, 2) enters it with its first step.
    np.testing.assert_allclose(values[[17, 22]], 10.0, atol=1e-6)
    assert records(tmp_path / "run")[-1]["residual"] < 1e-8


def test_sarsa_on_the_cliff_learns_a_way_to_the_goal(tmp_path: Path) -> None:
    job = replace(
        recipes.sarsa_cliff(), steps=60_000, epsilon=Linear(0.3, 0.0, 40_000), seeds=1, points=2
    )
    run(job, tmp_path / "run")
    assert records(tmp_path / "run")[-1]["value"] > -20  # falling is -100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": ""}, "no environment is given"),
        ({"env": "Taxi-v3"}, "Taxi-v4"),
        ({"env": "CartPole-v1"}, "model"),
        ({"discount": 1.5}, r"discount"),
        ({"step_size": -1.0}, "step_size"),
        ({"grid": Grid(rows=4, columns=5)}, "a grid of 4 x 5 cells does not fit the .* states of"),
        ({"grid": Grid(rows=4, columns=4, arrows="^v")}, r"grid\.arrows='\^v', but .* 4 actions"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_the_work(
    changes: dict[str, object], message: str
) -> None:
    job = replace(small(), **changes)  # type: ignore[arg-type]  # wrong ones
    with pytest.raises((UsageError, ValueError), match=message):
        job.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discount": 1.2}, r"discount=1\.2"),
        ({"discount": 1.0}, "discount=1 needs a proper policy"),
        ({"tolerance": 0.0}, r"tolerance=0\.0"),
        ({"tolerance": math.nan}, r"tolerance=nan"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_the_work(
    changes: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(recipes.value_iteration_gridworld(), **changes).check()


def test_discount_of_1_is_refused_where_a_learned_policy_may_never_end() -> None:
    with pytest.raises(UsageError, match="discount=1, but in CliffWalking-v1 some policies never"):
        replace(recipes.sarsa_cliff(), discount=1.0).check()
    assert recipes.mc_blackjack().discount == 1.0
    recipes.mc_blackjack().check()


def test_steps_and_episodes_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        replace(small(), episodes=3)
