import json
from pathlib import Path

import pytest

from launch.errors import UsageError
from launch.records import flat_config, read_run


def lines(path: Path, *records: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_folder_without_a_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path} holds no run: expected config.yaml"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match="nowhere does not exist"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is a file"):
        read_run(tmp_path / "file")


def test_recipe_is_read_from_the_first_line_of_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("# recipe: r1-mini\nseed: 0\n# recipe: no\n")
    assert read_run(tmp_path).recipe == "r1-mini"


def test_half_written_last_line_is_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    run = read_run(tmp_path)
    assert run.metrics == [{"step": 1, "loss": 2.0}]
    assert len(run.problems) == 1
    assert run.problems[0].startswith("metrics.jsonl: line 2 is no JSON object")


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\x00", b"[1, 2]", b"null", b'{"a": ' * 5000, b"\x00" * 64]
)
def test_damaged_line_leaves_the_others_whole(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n')
    run = read_run(tmp_path)
    assert run.metrics == [{"step": 1}, {"step": 3}]
    assert "line 2 is" in run.problems[0]


def test_last_record_of_a_step_counts(tmp_path: Path) -> None:
    lines(tmp_path / "metrics.jsonl", {"step": 1, "a": 1}, {"step": 2, "a": 2}, {"step": 1, "a": 3})
    assert read_run(tmp_path).metrics == [{"step": 1, "a": 3}, {"step": 2, "a": 2}]


def test_later_item_of_the_same_kind_and_name_takes_the_place_of_the_earlier(
    tmp_path: Path,
) -> None:
    (tmp_path / "checkpoints").mkdir()
    items = [
        {"kind": "note", "name": "a", "text": "old"},
        {"kind": "note", "name": "b", "text": "b"},
        {"kind": "note", "name": "a", "text": "new"},
        {"kind": "table", "name": "a", "rows": []},
    ]
    lines(tmp_path / "items.jsonl", *items)
    assert read_run(tmp_path).items == [items[2], items[1], items[3]]


def test_stages_come_in_order_of_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    for name in ("10-last", "2-grpo", "1-cold-start", "extra"):
        (tmp_path / "stages" / name).mkdir(parents=True)
    names = [stage.name for stage in read_run(tmp_path).stages]
    assert names == ["1-cold-start", "2-grpo", "10-last", "extra"]


def test_first_and_last_four_samples_are_kept(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    lines(tmp_path / "samples.jsonl", *({"step": i} for i in range(100)))
    assert [s["step"] for s in read_run(tmp_path).samples] == [0, 1, 2, 3, 96, 97, 98, 99]


def test_flat_config_of_damaged_yaml_is_none() -> None:
    assert flat_config("a: [1, 2") is None
    assert flat_config("just text") is None
    assert flat_config("a: {}\nb: null\nc: {d: true}") == {"a": "{}", "b": "null", "c.d": "true"}
