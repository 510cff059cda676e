"""What one stage of a pipeline makes and a later one learns from: JSONL with a record beside it.

``data.jsonl`` holds one conversation a line, as the recipe ``sft`` reads it. ``data.json``, written
last, says how many lines there are, their checksum, and which tokenizer the model had that wrote
them; so a file that was cut, changed, or made for another model is not learnt from by mistake.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import UsageError
from launch.folder import atomic_write
from posttrain.data.chat import encode_chats
from posttrain.data.conversations import load_conversations
from posttrain.data.packing import Document
from posttrain.models import LanguageModel
from posttrain.vocabulary import model_vocabulary

__all__ = ["StageData", "read_record", "write_stage_data"]


def write_stage_data(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    tokenizer: str,
    counts: Mapping[str, int] | None = None,
) -> None:
    """Write ``rows`` as ``path`` and the record beside it; each whole or not at all.

    Args:
        path: Ends with ``.jsonl``.
        rows: Conversations, as ``posttrain.data.conversations`` reads them.
        tokenizer: Fingerprint of the tokenizer that they were written with.
        counts: What else there is to say about them, such as how many were dropped and why.
    """
    text = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    record = {
        "lines": len(rows),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "tokenizer": tokenizer,
        "counts": dict(counts or {}),
    }
    _record_of(path).unlink(missing_ok=True)
    atomic_write(path, text)
    atomic_write(_record_of(path), json.dumps(record, indent=2) + "\n")


def read_record(path: Path, tokenizer: str | None, remedy: str) -> Mapping[str, Any] | None:
    """Return the record of stage data, after a look at the file; None if there is none yet.

    Args:
        path: Of the JSONL file.
        tokenizer: Fingerprint of that of the model which is to learn from it; None does not
            compare.
        remedy: What to do if it cannot be used, such as a command.

    Raises:
        UsageError: The file is missing beside its record, is not the one that was recorded, or was
            made with another tokenizer.
    """
    record = _record_of(path)
    if not record.exists():
        return None
    said = json.loads(record.read_text(encoding="utf-8"))
    if not path.exists():
        raise UsageError(
            f"{path} is missing, though {record.name} beside it says it was made: {remedy}"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != said["sha256"]:
        raise UsageError(
            f"{path} is not the file that {record.name} beside it describes ({said['lines']} "
            f"lines): it was cut or changed. {remedy}"
        )
    if tokenizer is not None and tokenizer != said["tokenizer"]:
        raise UsageError(
            f"{path} was made with another tokenizer than that of the model that is to learn from "
            f"it: {remedy}"
        )
    return said


@dataclass(frozen=True, kw_only=True, slots=True)
class StageData:
    """The data that a stage of ``monro run r1`` has left, as a source of documents."""

    path: str = ""
    """``RUN/stages/NAME/data.jsonl``."""

    def check(self) -> None:
        """Raise UsageError if the file is missing or not what was recorded of it."""
        if not self.path:
            raise UsageError(f"no data is given: add --data.path FILE.jsonl. {_MAKE}")
        if not Path(self.path).exists() and not _record_of(Path(self.path)).exists():
            raise UsageError(f"there is no file {self.path}. {_MAKE}")
        read_record(Path(self.path), None, _MAKE)
        load_conversations(Path(self.path))

    def texts(self, count: int) -> list[str]:
        """Return the contents of the first conversations."""
        chats = load_conversations(Path(self.path))[:count]
        return [str(message["content"]) for chat in chats for message in chat]

    def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
        """Return each conversation under the model's chat template.

        Raises:
            UsageError: It was made with another tokenizer.
        """
        read_record(Path(self.path), model_vocabulary(lm).fingerprint, _MAKE)
        return encode_chats(lm.tokenizer, load_conversations(Path(self.path)))


_MAKE = (
    "monro run r1 --until 3-rejection-sampling --output RUN makes RUN/stages/"
    "3-rejection-sampling/data.jsonl"
)


def _record_of(path: Path) -> Path:
    return path.with_suffix(".json")
