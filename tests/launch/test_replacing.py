"""A folder is replaced whole or not at all, and what a user put beside it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

import launch.replacing
from launch.errors import UsageError
from launch.replacing import folder_to_read, replaced_folder

OWN = ("config.yaml", "weights*")


def save(folder: Path, content: str, *names: str) -> None:
    with replaced_folder(folder, kind="model", own=OWN) as new:
        for name in ("config.yaml", *names):
            (new / name).write_text(content)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_older_files_go_and_what_stands_beside_them_stays(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "model"
    save(folder, "old", "weights-1", "weights-2")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")
    (folder / "video.gif").write_text("mine")
    save(folder, "new", "weights")
    kept = {"notes/a.txt": "mine", "video.gif": "mine"}
    assert contents(folder) == kept | {"config.yaml": "new", "weights": "new"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(UsageError, match=r"holds something else than a model \(it has no config"):
        save(tmp_path, "new")
    with pytest.raises(UsageError, match=r"thesis\.tex is a file: a model is saved as a folder"):
        save(tmp_path / "thesis.tex", "new")
    assert contents(tmp_path) == {"thesis.tex": "dear"}
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", "new")
    assert contents(tmp_path / "empty") == {"config.yaml": "new"}


@pytest.mark.parametrize("step", ["synchronize", "_copy_others", "_settle"])
def test_older_one_survives_a_disk_that_fails(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "model", "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(launch.replacing, step, fail)
    with pytest.raises(UsageError, match=r"model cannot be written: No space left on device"):
        save(tmp_path / "model", "new")
    assert contents(tmp_path) == {"model/config.yaml": "old"}


def fail_halfway(folder: Path) -> None:
    with replaced_folder(folder, kind="model", own=OWN) as new:
        (new / "config.yaml").write_text("half")
        raise KeyError("weights")


def test_older_one_survives_a_writer_that_fails(tmp_path: Path) -> None:
    save(tmp_path / "model", "old")
    with pytest.raises(KeyError):
        fail_halfway(tmp_path / "model")
    assert contents(tmp_path) == {"model/config.yaml": "old"}


def test_older_one_is_found_where_a_process_died_between_the_renames(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert folder_to_read(folder) == folder
    save(folder, "old")
    (folder / "mine").write_text("mine")
    folder.rename(tmp_path / ".model.old")
    assert contents(folder_to_read(folder)) == {"config.yaml": "old", "mine": "mine"}
    save(folder, "new")
    assert contents(tmp_path) == {"model/config.yaml": "new", "model/mine": "mine"}


def test_older_one_is_put_back_where_the_second_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "model", "old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UsageError, match=r"model cannot be written: Input/output error"):
        save(tmp_path / "model", "new")
    assert contents(tmp_path) == {"model/config.yaml": "old"}


def test_what_both_have_is_the_new_ones(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for content in ("old", "new"):
        with replaced_folder(folder, kind="model", own=OWN) as new:
            (new / "config.yaml").write_text(content)
            (new / "words.txt").write_text(content)
            (new / "templates").mkdir()
            (new / "templates" / "a").write_text(content)
    assert set(contents(folder).values()) == {"new"}


def test_links_stay_links_and_a_link_to_the_folder_is_followed(tmp_path: Path) -> None:
    folder, link = tmp_path / "big" / "model", tmp_path / "link"
    save(folder, "old")
    link.symlink_to(folder)
    (folder / "gone").symlink_to("nowhere")
    (folder / "round").symlink_to(".")
    for content in ("new", "newer"):
        save(link, content)
        assert contents(folder) == {"config.yaml": content}
        assert link.readlink() == folder
        assert (folder / "gone").readlink() == Path("nowhere")
        assert (folder / "round").readlink() == Path()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", [".", ".."])
def test_the_folder_one_works_in_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "a").mkdir()
    for folder in (tmp_path, tmp_path / "a"):
        (folder / "config.yaml").write_text("old")
    monkeypatch.chdir(tmp_path / "a")
    with pytest.raises(UsageError, match="is the folder that this program works in"):
        save(Path(name), "new")
    assert contents(tmp_path) == {"config.yaml": "old", "a/config.yaml": "old"}
