from pathlib import Path

import pytest

from launch.errors import UsageError
from posttrain.data.tasks import HubDataset


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def rows() -> dict[str, list[object]]:
    return {"q": [f"{i} + 1" for i in range(40)], "a": [i + 1 for i in range(40)]}


def task(name: Path, **settings: object) -> HubDataset:
    return HubDataset(
        str(name),
        question="q",
        answer="a",
        system=None,
        form="text",
        **settings,  # type: ignore[arg-type]  # of several types
    )


def test_a_parquet_file_is_read_by_its_columns(tmp_path: Path, rows: dict[str, object]) -> None:
    import datasets

    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    found = task(tmp_path / "a.parquet")
    prompts = found.train()
    assert len(prompts) == 40
    assert (prompts[-1].text, prompts[-1].answer) == ("39 + 1", "40")
    assert found.heldout() == []
    split = task(tmp_path / "a.parquet", heldout_share=0.5)
    train, heldout = ({p.text for p in part} for part in (split.train(), split.heldout()))
    assert len(train) + len(heldout) == 40
    assert train
    assert heldout
    assert not train & heldout
    with pytest.raises(UsageError, match=r"has no column 'question' \(columns: q, a\)"):
        HubDataset(str(tmp_path / "a.parquet")).train()


def test_a_saved_folder_has_a_heldout_split(tmp_path: Path, rows: dict[str, object]) -> None:
    import datasets

    gold = {"q": ["0 + 1", "50 + 1"], "a": ["it is\n#### 1", "#### 51"]}
    saved = datasets.DatasetDict(
        train=datasets.Dataset.from_dict(rows), test=datasets.Dataset.from_dict(gold)
    )
    saved.save_to_disk(tmp_path / "saved")
    found = task(tmp_path / "saved", heldout_split="test")
    assert [(p.text, p.answer) for p in found.heldout()] == [("0 + 1", "1"), ("50 + 1", "51")]
    assert [p.text for p in found.train()][:2] == ["1 + 1", "2 + 1"]
    assert len(found.train()) == 39


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("a")
    for name in ("a.xyz", "none"):
        with pytest.raises(UsageError, match="split train, cannot be loaded") as error:
            task(tmp_path / name).train()
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="not both"):
        task(tmp_path, heldout_split="test", heldout_share=0.1)
