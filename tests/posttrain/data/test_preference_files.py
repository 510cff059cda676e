import json
from pathlib import Path
from typing import Any

import pytest

from launch.errors import UsageError
from posttrain.data.instruction_pairs import instruction_pairs
from posttrain.data.preference_files import Preference, encode_pairs, load_preferences
from posttrain.data.preferences import pad_pairs
from posttrain.data.tasks import Instructions
from posttrain.models import train_tokenizer

USER, GOOD, BAD = (
    {"role": role, "content": content}
    for role, content in (("user", "1+1"), ("assistant", "2"), ("assistant", "3!"))
)
SYSTEM = {"role": "system", "content": "Be brief."}
RIGHT = {"prompt": "1+1", "chosen": "2", "rejected": "3!"}


def written(path: Path, *rows: Any) -> Path:  # noqa: ANN401 - right and wrong ones
    file = path / "pairs.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def test_load_preferences_reads_every_form(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        RIGHT | {"source": "mine"},
        "",
        {"messages": [USER], "chosen": "2", "rejected": [BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": "3!"},
        {"prompt": "1+1", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    )
    assert load_preferences(file) == [Preference([USER], GOOD, BAD)] * 4


def test_a_margin_goes_from_the_line_into_the_batch(tmp_path: Path) -> None:
    found = load_preferences(written(tmp_path, RIGHT | {"margin": 2}, RIGHT))
    assert [x.margin for x in found] == [2.0, 0.0]
    tokenizer = train_tokenizer(["1+1", "2", "3!"])
    margin = pad_pairs(encode_pairs(tokenizer, found)).margin
    assert margin is not None
    assert margin.tolist() == [2.0, 2.0, 0.0, 0.0]
    assert pad_pairs(encode_pairs(tokenizer, found[1:])).margin is None


def test_rows_of_instruction_pairs_are_preferences(tmp_path: Path) -> None:
    pairs = instruction_pairs(Instructions().train()[:3], seed=0)
    found = load_preferences(written(tmp_path, *(pair.row() for pair in pairs)))
    assert [x.chosen["content"] for x in found] == [pair.chosen for pair in pairs]
    assert [x.rejected["content"] for x in found] == [pair.rejected for pair in pairs]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not JSON"),
        ({"prompt": "a", "rejected": "b"}, r"there is no 'chosen' \(keys: prompt, rejected\)"),
        ({"prompt": "a", "chosen": "b"}, r"there is no 'rejected' \(keys: prompt, chosen\)"),
        (RIGHT | {"chosen": None}, "chosen is NoneType, expected text or a list of messages"),
        (RIGHT | {"rejected": " "}, "rejected is empty, so there is nothing to compare"),
        (RIGHT | {"rejected": []}, "rejected: a chat without messages"),
        (RIGHT | {"chosen": [USER]}, "chosen has messages of user, expected one of the assistant"),
        (RIGHT | {"chosen": [{**GOOD, "content": 2}]}, r"chosen: message 0 \(assistant\) has 2"),
        ({"chosen": "a", "rejected": "b"}, "there is no 'prompt'"),
        (RIGHT | {"prompt": 1}, "prompt is int, expected text or a list of messages"),
        (RIGHT | {"messages": []}, "a chat without messages"),
        (RIGHT | {"margin": "wide"}, "margin is 'wide', expected a finite number of 0 or more"),
        (RIGHT | {"margin": -1}, "margin is -1, expected a finite number of 0 or more"),
        ({"promt": "a", "chosen": "a", "rejected": "b"}, "there is no 'prompt'; did you mean"),
    ],
)
def test_load_preferences_names_file_and_line(tmp_path: Path, row: Any, said: str) -> None:  # noqa: ANN401 - wrong ones
    file = written(tmp_path, RIGHT, row)
    with pytest.raises(UsageError, match=rf"pairs\.jsonl, line 2: {said}"):
        load_preferences(file)


def test_encode_pairs_counts_the_last_turn_alone_after_the_same_prompt() -> None:
    tokenizer = train_tokenizer(["1+1", "2", "3!", "Be brief."], vocabulary=64)
    prompt = [SYSTEM, USER, GOOD, USER]
    ((chosen, rejected),) = encode_pairs(tokenizer, [Preference(prompt, GOOD, BAD)])
    start = "<|system|>Be brief.<|end|><|user|>1+1<|end|><|assistant|>2<|end|><|user|>1+1<|end|>"
    for document, content in ((chosen, "2"), (rejected, "3!")):
        counted = [t for t, m in zip(document.tokens, document.mask, strict=True) if m]
        before = [t for t, m in zip(document.tokens, document.mask, strict=True) if not m]
        assert tokenizer.decode(counted) == f"{content}<|end|>"
        assert tokenizer.decode(before) == f"{start}<|assistant|>"


def test_a_chat_that_the_template_refuses_is_numbered() -> None:
    tokenizer = train_tokenizer(["1+1", "2", "3!"], vocabulary=64)
    told = [USER, {"role": "tool", "content": "2"}]
    pairs = [Preference([USER], GOOD, BAD), Preference(told, GOOD, BAD)]
    with pytest.raises(UsageError, match=r"^preference 1: the chat template refuses the roles"):
        encode_pairs(tokenizer, pairs)
