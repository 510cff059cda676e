"""Whether two models speak of the same tokens, seen from their files or once they are loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.errors import UsageError
from posttrain.models import LanguageModel

__all__ = ["Vocabulary", "check_alike", "folder_vocabulary", "model_vocabulary"]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer's tokens, and over how many the model gives logits."""

    name: str
    """Of the model, as it was given."""
    tokens: Mapping[str, int]
    logits: int
    """At least ``len(tokens)``; checkpoints pad it, and models of one family may differ."""

    @property
    def fingerprint(self) -> str:
        """A short text that tells tokenizers apart."""
        text = json.dumps(sorted(self.tokens.items()), ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def model_vocabulary(lm: LanguageModel, name: str = "") -> Vocabulary:
    """Return the vocabulary of a loaded model; ``name`` is by default where it was loaded from."""
    logits = int(lm.model.get_output_embeddings().weight.shape[0])
    named = name or str(lm.model.config.name_or_path) or type(lm.model).__name__
    return Vocabulary(named, lm.tokenizer.get_vocab(), logits)


def folder_vocabulary(path: Path | str) -> Vocabulary | None:
    """Return the vocabulary of a model folder without loading it; None if its files do not say."""
    files = Path(path) / "tokenizer.json", Path(path) / "config.json"
    if not all(file.is_file() for file in files):
        return None
    from tokenizers import Tokenizer

    try:
        tokens = Tokenizer.from_file(str(files[0])).get_vocab(with_added_tokens=True)
        logits = json.loads(files[1].read_text(encoding="utf-8")).get("vocab_size")
    except Exception:  # tokenizers raises its own; whoever loads the model says what is wrong
        return None
    return Vocabulary(str(path), tokens, logits) if isinstance(logits, int) else None


def check_alike(student: Vocabulary, teacher: Vocabulary, *, logits: bool) -> None:
    """Raise UsageError unless both have the same tokens, and with ``logits`` as many logits."""
    remedy = (
        "what one writes the other cannot grade. Take a student with the teacher's tokenizer, or "
        "leave the on-policy stage out (--on_policy none) and learn from the teacher's texts alone"
    )
    if student.tokens != teacher.tokens:
        ours, theirs = dict(student.tokens), dict(teacher.tokens)
        token = min(x for x in {*ours, *theirs} if ours.get(x) != theirs.get(x))
        raise UsageError(
            f"the student {student.name} has a tokenizer of {len(ours)} tokens and the teacher "
            f"{teacher.name} another one of {len(theirs)}: {token!r} has the id "
            f"{ours.get(token)} in the first and {theirs.get(token)} in the second, so {remedy}"
        )
    if logits and student.logits != teacher.logits:
        raise UsageError(
            f"the student {student.name} gives logits of {student.logits} tokens and the teacher "
            f"{teacher.name} of {teacher.logits}: their distributions cannot be compared over the "
            "whole vocabulary. The sampled form compares single tokens: "
            "posttrain.objectives:SampledReverseKL"
        )
