from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray

import rl.policy_files
from launch.errors import UsageError
from rl.actor_critic import SharedTrunk
from rl.layers import UniformFanIn
from rl.networks import (
    Dueling,
    FactorisedNoise,
    GaussianMLPConfig,
    MLPConfig,
    NetworkConfig,
    QNetworkConfig,
)
from rl.normalisation import ObservationNormaliser
from rl.policies import (
    CategoricalPolicy,
    DeterministicPolicy,
    GaussianPolicy,
    GreedyPolicy,
    Policy,
    SquashedGaussianPolicy,
    load_policy,
)
from rl.spaces import Space
from rl.value_laws import CategoricalValues, QuantileValues

VECTOR = spaces.Box(-1.0, 1.0, (4,))
DISCRETE, BOX = spaces.Discrete(3), spaces.Box(-2.0, 1 / 3, (2,))
WIDE = MLPConfig(hidden=(8, 5), activation="relu", initialisation=UniformFanIn())

KINDS: list[tuple[type[Policy], Space, NetworkConfig]] = [
    (CategoricalPolicy, DISCRETE, WIDE),
    (CategoricalPolicy, DISCRETE, MLPConfig()),
    (GreedyPolicy, DISCRETE, QNetworkConfig()),
    (GreedyPolicy, DISCRETE, QNetworkConfig(dueling=Dueling(), values=QuantileValues(atoms=7))),
    (GreedyPolicy, DISCRETE, QNetworkConfig(noise=FactorisedNoise(), values=CategoricalValues())),
    (GaussianPolicy, BOX, GaussianMLPConfig(mean=WIDE, log_std=-0.3)),
    (SquashedGaussianPolicy, BOX, WIDE),
    (DeterministicPolicy, BOX, WIDE),
]


def make(kind: type[Policy], space: Space, config: NetworkConfig, seed: int = 3) -> Policy:
    network = config.build(VECTOR, kind.outputs_of(space), torch.Generator().manual_seed(seed))
    normaliser = ObservationNormaliser((4,), clip=3.0)
    normaliser.update(rows(9) / 3)
    return kind(
        network, VECTOR, space, normaliser=normaliser, env_id="Toy-v0", seed=5, exploration=0.25
    )


def rows(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("kind", "space", "config"), KINDS)
def test_loaded_policy_acts_bit_for_bit_like_the_saved_one(
    kind: type[Policy], space: Space, config: NetworkConfig, tmp_path: Path
) -> None:
    saved = make(kind, space, config)
    saved.save(tmp_path / "policy")
    assert entries(tmp_path) == ["policy"]
    assert entries(tmp_path / "policy") == ["model.safetensors", "policy.json"]
    before = torch.get_rng_state()
    policy = load_policy(tmp_path / "policy")
    assert torch.equal(torch.get_rng_state(), before)
    assert type(policy) is kind
    assert (policy.observation_space, policy.action_space) == (VECTOR, space)
    assert (policy.env_id, policy.seed, policy.exploration) == ("Toy-v0", 5, 0.25)
    assert policy.network.config == config
    assert np.array_equal(policy.act(rows(32)), saved.act(rows(32)))
    assert np.array_equal(policy.act(rows(32), False), saved.act(rows(32), False))


def test_actor_of_a_shared_trunk_over_dict_and_images_comes_back(tmp_path: Path) -> None:
    space = spaces.Dict(camera=spaces.Box(0, 255, (36, 36, 3), np.uint8), gear=spaces.Discrete(2))
    model = SharedTrunk(hidden=(8,)).build(space, DISCRETE, torch.Generator().manual_seed(0))
    saved = CategoricalPolicy(model.actor, space, DISCRETE)
    saved.save(str(tmp_path / "policy"))
    g = np.random.default_rng(0)
    camera = g.integers(0, 256, (16, 36, 36, 3)).astype(np.uint8)
    observations = {"camera": camera, "gear": g.integers(0, 2, 16)}
    policy = load_policy(str(tmp_path / "policy"))
    assert policy.normaliser is None
    assert np.array_equal(policy.act(observations, False), saved.act(observations, False))


def test_saving_replaces_an_older_policy_and_keeps_what_stands_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    make(*KINDS[0]).save(folder)
    (folder / "video.gif").write_bytes(b"GIF")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("good")
    newer = make(*KINDS[5])
    newer.save(folder)
    assert np.array_equal(load_policy(folder).act(rows(8)), newer.act(rows(8)))
    assert entries(folder) == ["model.safetensors", "notes", "policy.json", "video.gif"]
    assert (folder / "notes" / "a.txt").read_text() == "good"
    assert entries(tmp_path) == ["policy"]


def test_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(UsageError, match=r"holds something else than a policy"):
        make(*KINDS[0]).save(tmp_path)
    assert entries(tmp_path) == ["thesis.tex"]
    with pytest.raises(UsageError, match=r"thesis\.tex is a file"):
        make(*KINDS[0]).save(tmp_path / "thesis.tex")
    (tmp_path / "empty").mkdir()
    make(*KINDS[0]).save(tmp_path / "empty")
    load_policy(tmp_path / "empty")


def test_older_policy_survives_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "policy"
    older = make(*KINDS[0])
    older.save(folder)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rl.policy_files, "save_file", fail)
    with pytest.raises(UsageError, match=r"policy cannot be written: No space left on device"):
        make(*KINDS[0], seed=4).save(folder)
    assert np.array_equal(load_policy(folder).act(rows(8)), older.act(rows(8)))
    assert entries(tmp_path) == ["policy"]


def test_older_policy_is_found_where_a_process_died_between_the_renames(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    older = make(*KINDS[0])
    older.save(folder)
    folder.rename(tmp_path / ".policy.old")
    assert np.array_equal(load_policy(folder).act(rows(8)), older.act(rows(8)))
    assert entries(tmp_path) == [".policy.old"]
    newer = make(*KINDS[0], seed=4)
    newer.save(folder)
    assert entries(tmp_path) == ["policy"]
    assert np.array_equal(load_policy(folder).act(rows(8)), newer.act(rows(8)))


def spoil_json(folder: Path, **changes: object) -> None:
    text = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(text | changes))


SPOILED = {
    "no text": (lambda f: (f / "policy.json").unlink(), r"has no policy\.json: it holds no policy"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors"),
    "not json": (lambda f: (f / "policy.json").write_text("{"), r"policy\.json cannot be read"),
    "bytes": (lambda f: (f / "policy.json").write_bytes(b"\xff"), r"policy\.json cannot be read"),
    "a list": (lambda f: (f / "policy.json").write_text("[]"), r"has format None, expected 1"),
    "newer": (lambda f: spoil_json(f, format=2), r"has format 2, expected 1"),
    "no policy": (lambda f: spoil_json(f, policy="os:getcwd"), r"os:getcwd is no policy"),
    "unknown": (lambda f: spoil_json(f, policy="rl.policies:X"), r"describes no policy: .*X"),
    "space": (lambda f: spoil_json(f, action_space={}), r"describes no space"),
    "network": (lambda f: spoil_json(f, network={"_type": "rl.networks:MLPConfig", "x": 1}), "x"),
    "no network": (lambda f: spoil_json(f, network=None), r"describes no policy"),
    "other": (
        lambda f: spoil_json(f, network={"_type": "rl.networks:MLPConfig", "hidden": [3]}),
        r"model\.safetensors does not fit the network in policy\.json",
    ),
    "cut": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-5]
        ),
        r"model\.safetensors is damaged",
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), r"safetensors is damaged"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_folder_that_cannot_be_loaded_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "my-policy"
    make(*KINDS[0]).save(folder)
    spoil, message = SPOILED[name]
    spoil(folder)
    with pytest.raises(UsageError, match=rf"(?s)my-policy.*{message}") as caught:
        load_policy(folder)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere is not a folder"):
        load_policy(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"file is not a folder"):
        load_policy(tmp_path / "file")


def test_network_without_a_config_cannot_be_saved_and_leaves_nothing(tmp_path: Path) -> None:
    policy = make(*KINDS[0])
    policy.network.config = None  # type: ignore[assignment]  # on purpose
    with pytest.raises(UsageError, match=r"its config is None, expected a frozen dataclass"):
        policy.save(tmp_path / "policy")
    assert entries(tmp_path) == []
