from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray
from PIL import Image

import rl.evaluation
from launch.errors import UsageError
from launch.streams import key
from rl.classic_control import CompiledEnvs
from rl.evaluation import evaluate, load_policy, record_gif
from rl.vector_env import episode_seed

Options: TypeAlias = dict[str, object] | None
Reset: TypeAlias = tuple[NDArray[np.float32], dict[str, object]]
Step: TypeAlias = tuple[NDArray[np.float32], float, bool, bool, dict[str, object]]


class Dice(gymnasium.Env[Any, int]):
    """Lasts as long as a die says; the actions are the rewards, the observation the time."""

    observation_space = spaces.Box(0.0, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(5)
    closed = 0

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Options = None) -> Reset:
        super().reset(seed=seed)
        self.left, self.time = self.np_random.integers(1, 7), 0
        return np.array([0.0], np.float32), {}

    def step(self, action: int) -> Step:
        self.time += 1
        observation = np.array([self.time], np.float32)
        return observation, float(action), self.time >= self.left, False, {}

    def render(self) -> NDArray[np.uint8]:
        return np.full((8, 6, 3), 20 * self.time, np.uint8)

    def close(self) -> None:
        Dice.closed += 1


class Endless(Dice):
    """Never ends."""

    def step(self, action: int) -> Step:
        observation, reward, *_ = super().step(action)
        return observation, reward, False, False, {}


class Sum:
    """Acts 1, 2, 3, 4, 4, 4: the return tells for how long."""

    def act(self, observations: NDArray[np.float32], deterministic: bool = True) -> NDArray[Any]:
        assert deterministic
        return np.minimum(observations[:, 0] + 1, 4).astype(np.int64)


class Left:
    """Pushes to the left whatever it sees."""

    def act(self, observations: NDArray[np.float32], deterministic: bool = True) -> NDArray[Any]:
        return np.zeros(len(observations), np.int64)


def expected_returns(seed: int, episodes: int) -> list[float]:
    seeds = [episode_seed(key(seed, "evaluate"), 0, k) for k in range(episodes)]
    rolled = [int(np_random(s)[0].integers(1, 7)) for s in seeds]
    return [float(sum(min(t, 4) for t in range(1, n + 1))) for n in rolled]


# --- evaluation -------------------------------------------------------------------------------


def test_every_episode_counts_once_however_long_it_is() -> None:
    returns = evaluate(Sum(), Dice, episodes=40, seed=3)
    assert returns.dtype == np.float64
    assert returns.tolist() == expected_returns(3, 40)
    assert len(set(returns)) == 6  # the die has shown every face


def test_episodes_are_the_same_one_by_one_and_in_any_number() -> None:
    expected = expected_returns(0, 70)
    assert evaluate(Sum(), Dice(), episodes=10).tolist() == expected[:10]
    for limit in (None, 9):
        returns = evaluate(Sum(), Dice, episodes=70, max_episode_steps=limit)
        assert returns.tolist() == expected
    assert evaluate(Sum(), Dice, episodes=70, seed=1).tolist() != expected


def test_environments_of_its_own_are_closed_and_a_given_one_is_not() -> None:
    Dice.closed = 0
    evaluate(Sum(), Dice(), episodes=2)
    assert Dice.closed == 0
    evaluate(Sum(), Dice, episodes=2, max_episode_steps=9)
    assert Dice.closed == 2


def test_compiled_environment_gives_the_returns_of_gymnasiums() -> None:
    returns = evaluate(Left(), "CartPole-v1", episodes=5, seed=2)
    envs = CompiledEnvs("CartPole-v1", 5, seed=key(2, "evaluate"))
    envs.reset()
    original = gymnasium.make("CartPole-v1")
    for entry, total in zip(envs.state_dict()["environments"], returns, strict=True):
        original.reset()
        original.unwrapped.state = entry["row"][:-2].numpy()
        length, ended = 0, False
        while not ended:
            _, _, ended, _, _ = original.step(0)
            length += 1
        assert total == length


def test_model_is_evaluated_with_its_own_limit() -> None:
    class Model:
        def to_env(self, max_episode_steps: int | None = None) -> gymnasium.Env[Any, Any]:
            return gymnasium.wrappers.TimeLimit(Endless(), max_episode_steps or 3)

    assert evaluate(Sum(), Model(), episodes=2).tolist() == [6.0, 6.0]  # 1 + 2 + 3


def test_endless_episode_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(Sum(), Endless, episodes=2, max_episode_steps=2).tolist() == [3.0, 3.0]
    monkeypatch.setattr(rl.evaluation, "STEP_LIMIT", 10)
    for env in (Endless, Endless()):
        assert evaluate(Sum(), env, episodes=2).tolist() == [34.0, 34.0]  # 1 + 2 + 3 + 7 * 4
    limited = gymnasium.wrappers.TimeLimit(Endless(), 11)
    assert evaluate(Sum(), limited, episodes=1).tolist() == [38.0]
    assert evaluate(Sum(), lambda: limited, episodes=1).tolist() == [38.0]


def test_policy_that_asks_for_masks_is_given_them() -> None:
    class Masked(Left):
        seen: Any = ()

        def act(
            self,
            observations: NDArray[np.float32],
            deterministic: bool = True,
            *,
            action_masks: NDArray[np.bool_] | None = None,
        ) -> NDArray[Any]:
            self.seen = action_masks
            return np.asarray(action_masks.argmax(1))

    policy = Masked()
    evaluate(policy, "Taxi-v4", episodes=3, max_episode_steps=2)
    assert policy.seen.shape == (3, 6)
    evaluate(Left(), "Taxi-v4", episodes=1, max_episode_steps=2)


def test_policy_of_another_environment_is_refused() -> None:
    class Own(Left):
        observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        action_space = spaces.Discrete(2)

    with pytest.raises(UsageError, match=r"observation space is Box.*\(3,\).*\(4,\)"):
        evaluate(Own(), "CartPole-v1")
    Own.observation_space = CompiledEnvs("CartPole-v1", 1, seed=0).observation_space
    assert len(evaluate(Own(), "CartPole-v1", episodes=2)) == 2
    Own.action_space = spaces.Discrete(3)
    with pytest.raises(UsageError, match=r"action space is Discrete\(3\).*Discrete\(2\)"):
        evaluate(Own(), "CartPole-v1")


def test_bad_input_is_refused() -> None:
    with pytest.raises(UsageError, match="episodes=0"):
        evaluate(Left(), "CartPole-v1", episodes=0)
    with pytest.raises(UsageError, match="environments of its own"):
        evaluate(Left(), gymnasium.make_vec("CartPole-v1", 20))
    with pytest.raises(UsageError, match="Taxi-v4"):
        evaluate(Left(), "Taxi-v3")


def test_policy_of_a_folder_without_one_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=tmp_path.name):
        load_policy(tmp_path)


# --- recording --------------------------------------------------------------------------------


def test_gif_shows_every_frame_of_an_episode(tmp_path: Path) -> None:
    path = tmp_path / "new" / "dice.gif"
    record_gif(Sum(), lambda: Dice(render_mode="rgb_array"), path, seed=3, fps=20)
    length = {1.0: 1, 3.0: 2, 6.0: 3, 10.0: 4, 14.0: 5, 18.0: 6}[expected_returns(3, 1)[0]]
    with Image.open(path) as picture:
        assert picture.size == (6, 8)
        assert picture.n_frames == length + 1
        assert picture.info["duration"] == 50
        assert picture.info["loop"] == 0
        picture.seek(1)
        assert picture.convert("RGB").getpixel((0, 0)) == (20, 20, 20)


@pytest.mark.parametrize(("own", "every", "milliseconds"), [(4, 1, 250), (30, 1, 30), (50, 2, 40)])
def test_gif_at_the_environments_own_pace(
    tmp_path: Path, own: int, every: int, milliseconds: int
) -> None:
    class Paced(Dice):
        metadata = Dice.metadata | {"render_fps": own}

    counts = []
    for fps in (20, None):
        path = tmp_path / f"{fps}.gif"
        record_gif(Sum(), lambda: Paced(render_mode="rgb_array"), path, seed=5, fps=fps)
        with Image.open(path) as picture:
            counts.append(picture.n_frames)
            picture.seek(1)
            assert fps == 20 or picture.info["duration"] == milliseconds
    assert counts[0] > 3
    assert counts[1] == 1 + math.ceil((counts[0] - 1) / every)


def test_gif_has_no_more_frames_than_wanted(tmp_path: Path) -> None:
    record_gif(Sum(), Endless(render_mode="rgb_array"), tmp_path / "a.gif", max_frames=4)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 4


def test_environment_that_gives_no_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Dice has render_mode=None.*rgb_array"):
        record_gif(Sum(), Dice, tmp_path / "a.gif")


def test_missing_package_for_rendering_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(UsageError, match=r'rendering CartPole-v1 .*"monro\[render\]"'):
        record_gif(Left(), "CartPole-v1", tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("driver", [None, "offscreen"])
def test_frames_are_drawn_without_a_display_and_the_environment_stays(
    driver: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    if driver is not None:
        monkeypatch.setenv("SDL_VIDEODRIVER", driver)
    seen = []

    class Seeing(Dice):
        def render(self) -> NDArray[np.uint8]:  # type: ignore[override]  # gymnasium is untyped
            seen.append(os.environ["SDL_VIDEODRIVER"])
            return super().render()  # type: ignore[no-any-return]

    record_gif(Sum(), lambda: Seeing(render_mode="rgb_array"), tmp_path / "a.gif")
    assert set(seen) == {driver or "dummy"}
    assert os.environ.get("SDL_VIDEODRIVER") == driver


def test_drawing_says_nothing_on_stderr(tmp_path: Path) -> None:
    code = (
        "import numpy as np, sys\n"
        "from rl.evaluation import record_gif\n"
        "class Left:\n"
        "    def act(self, observations, deterministic=True):\n"
        "        return np.zeros(len(observations), np.int64)\n"
        "record_gif(Left(), 'CartPole-v1', sys.argv[1])\n"
    )
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "SDL_", "DISPLAY"))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.gif")],
        env=bare,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.size == (600, 400)
        assert picture.n_frames > 5
