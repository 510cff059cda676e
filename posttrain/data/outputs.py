"""A teacher's completions in a file of one JSON object a line, to learn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import UsageError
from launch.folder import atomic_write
from posttrain.data.chat import check_messages, encode_prompt, encode_turns
from posttrain.data.json_lines import field_of, read_json_lines
from posttrain.data.packing import Document
from posttrain.data.tasks.base import Prompt
from posttrain.models import LanguageModel

__all__ = ["Output", "load_outputs", "output_documents", "output_row", "write_outputs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """A prompt and what the teacher wrote."""

    prompt: Prompt
    completion: str
    teacher: str = ""
    """Name of the model that wrote it; empty if nobody says."""
    tokenizer: str = ""
    """Fingerprint of that model's tokenizer."""


def write_outputs(path: Path | str, outputs: Sequence[Output]) -> None:
    """Write the file, whole or not at all.

    A chat is ``{"prompt": [messages], "completion": ...}``, which the recipe ``sft`` reads too;
    text that a base model continues has ``text`` in place of ``prompt``.
    """
    lines = [json.dumps(output_row(output), ensure_ascii=False) + "\n" for output in outputs]
    atomic_write(Path(path), "".join(lines))


def load_outputs(path: Path | str) -> list[Output]:
    """Return the outputs of a file; keys other than those of ``write_outputs`` are ignored.

    A ``prompt`` that is text is what a user says.

    Raises:
        UsageError: There is no such file, or a line is not of this form; the error names it.
    """
    return [_output(row, f"{path}, line {number}") for number, row in read_json_lines(path)]


def output_documents(lm: LanguageModel, outputs: Sequence[Output]) -> list[Document]:
    """Return each output as the student would have written it: only the completion counts.

    Raises:
        UsageError: The tokenizer's chat template does not take a chat.
    """
    documents = []
    for index, output in enumerate(outputs):
        if output.prompt.messages is None:
            start = encode_prompt(lm.tokenizer, output.prompt)
            rest = lm.tokenizer.encode(output.completion, add_special_tokens=False)
            rest = [*rest, lm.stop_tokens[0]]
            document = Document(start + rest, [False] * len(start) + [True] * len(rest))
        else:
            turn = {"role": "assistant", "content": output.completion}
            try:
                document = encode_turns(lm.tokenizer, [*output.prompt.messages, turn])[-1]
            except ValueError as error:
                raise UsageError(f"output {index}: {error}") from error
        documents.append(document)
    return documents


def output_row(output: Output) -> dict[str, Any]:
    """Return an output as a line of ``write_outputs`` holds it."""
    prompt = output.prompt
    asked: dict[str, Any] = {"text": prompt.text}
    if prompt.messages is not None:
        asked = {"prompt": [dict(message) for message in prompt.messages]}
    about = {"answer": prompt.answer, "teacher": output.teacher, "tokenizer": output.tokenizer}
    return asked | {"completion": output.completion} | about


def _output(row: dict[str, Any], where: str) -> Output:
    completion = field_of(row, "completion", where)
    texts = {"completion": completion}
    texts |= {name: row.get(name, "") for name in ("text", "answer", "teacher", "tokenizer")}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise UsageError(f"{where}: {name} is {type(value).__name__}, expected text")
    if not completion.strip():
        raise UsageError(f"{where}: completion is empty, so there is nothing to learn")
    if "text" in row:
        prompt = Prompt(text=texts["text"], answer=texts["answer"])
    else:
        asked = field_of(row, "prompt", where)
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        try:
            check_messages(messages)
        except ValueError as error:
            raise UsageError(f"{where}: prompt: {error}") from error
        prompt = Prompt(messages=tuple(messages), answer=texts["answer"])
    return Output(
        prompt=prompt,
        completion=completion,
        teacher=texts["teacher"],
        tokenizer=texts["tokenizer"],
    )
