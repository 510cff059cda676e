from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.errors import UsageError
from posttrain.data.stage_data import StageData, read_record, write_stage_data
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.vocabulary import model_vocabulary

ROWS = [
    {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]},
    {"prompt": [{"role": "user", "content": "2+1"}], "completion": "3"},
]


def made(text: str) -> LanguageModel:
    return tiny_model(train_tokenizer([text]), layers=1, width=16, heads=2)


def mark(lm: LanguageModel) -> str:
    return model_vocabulary(lm).fingerprint


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return made("1+1=2 and 2+1=3")


def test_data_comes_back_as_documents(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write_stage_data(path, ROWS, mark(lm), {"dropped": 7})
    record = json.loads((tmp_path / "data.json").read_text())
    assert record["lines"] == 2
    assert record["counts"] == {"dropped": 7}
    source = StageData(path=str(path))
    source.check()
    documents = source.documents(lm, 0, 0)
    texts = [lm.tokenizer.decode(list(document.tokens)) for document in documents]
    assert texts == [
        "<|user|>1+1<|end|><|assistant|>2<|end|>",
        "<|user|>2+1<|end|><|assistant|>3<|end|>",
    ]


def test_a_file_that_was_cut_changed_or_removed_is_named(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    assert read_record(path, mark(lm), "make it") is None
    write_stage_data(path, ROWS, mark(lm))
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"data\.jsonl is not the file .* make it"):
        read_record(path, mark(lm), "make it")
    path.unlink()
    with pytest.raises(UsageError, match=r"data\.jsonl is missing.* make it"):
        read_record(path, mark(lm), "make it")


def test_another_tokenizer_is_refused_with_the_command_that_makes_it(
    lm: LanguageModel, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    write_stage_data(path, ROWS, mark(lm))
    other = made("something else 1+1=2")
    assert mark(other) != mark(lm)
    with pytest.raises(UsageError, match=r"another tokenizer .*monro run r1 --until 3-rejection"):
        StageData(path=str(path)).documents(other, 0, 0)


def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*monro run r1 --until 3-rejection"):
        StageData(path=str(tmp_path / "none.jsonl")).check()
    with pytest.raises(UsageError, match=r"no data is given: add --data\.path FILE"):
        StageData().check()


def test_plain_files_of_conversations_are_taken_too(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "1+1", "completion": "2"}) + "\n")
    source = StageData(path=str(path))
    source.check()
    assert len(source.documents(lm, 0, 0)) == 1
