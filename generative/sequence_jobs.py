"""The Transformer of 2017 on sequences, as a job: training, report and the model it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

from generative.attention.transformer import Transformer, TransformerConfig
from generative.attention_figures import draw_attention
from generative.model_folder import keep_architecture, new_model, save_model
from generative.sequence_tasks import BEGIN, END, SPECIAL, checked_answer
from generative.train_sequences import Answered, SequenceTraining, answered, train_sequences
from launch.config import resumable
from launch.errors import UsageError
from launch.runtime import Runtime, RuntimeConfig

__all__ = ["SequenceJob"]

_SHOWN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceJob(SequenceTraining):
    """An encoder-decoder learns a task on sequences."""

    leaves_run: ClassVar[bool] = True
    model: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            vocabulary=18, width=64, layers=2, heads=4, hidden=256, most_tokens=17
        )
    )
    """``vocabulary`` and ``most_tokens`` have to hold the sequences; more does no harm."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError if the model cannot hold the sequences, or the task answers amiss."""
        if self.model.vocabulary < self.sequences.vocabulary:
            raise UsageError(
                f"model.vocabulary={self.model.vocabulary}, but sequences.symbols="
                f"{self.sequences.symbols} take {self.sequences.vocabulary} tokens with the two "
                "that begin and end"
            )
        if self.model.most_tokens < self.sequences.longest + 1:
            raise UsageError(
                f"model.most_tokens={self.model.most_tokens}, but a target of sequences.longest="
                f"{self.sequences.longest} symbols takes {self.sequences.longest + 1} tokens"
            )
        asked = list(range(SPECIAL + 1, SPECIAL - 1, -1))
        try:
            checked_answer(self.answer, asked, self.sequences.vocabulary)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"answer fails on {asked} ({type(error).__name__}: {error}): it has to turn any "
                f"symbols, numbers from {SPECIAL} upwards, into as many"
            ) from None

    def run(self, run: Runtime) -> None:
        """Train, show what was learnt, and leave the model in the run folder."""
        model = cast(Transformer, new_model(self.model, self.seed))
        keep_architecture(model, run)
        train_sequences(self, model, run)
        found = answered(self, model, run)
        share = run.sum(found.exact.sum()) / run.sum(len(found.exact))
        self._show(model, found, float(share), run)
        if run.output is not None:
            folder = run.output / "model"
            run.on_main(lambda: save_model(model, folder))
            run.print(f"The model is in {folder}: generative.model_folder.load_model reads it.")

    def _show(self, model: Transformer, found: Answered, share: float, run: Runtime) -> None:
        """Leave samples, a figure of where the heads look, and what the figures mean."""
        batch = found.batch
        rows = [
            {
                "source": _text(batch.source[row][batch.source_mask[row]].tolist()),
                "answer": _text(_until_end(found.tokens[row].tolist())),
                "right": bool(found.exact[row]),
            }
            for row in range(min(_SHOWN, len(batch)))
        ]
        run.samples(self.steps, rows)
        run.note(
            "What was learnt",
            f"Of {self.heldout} sequences that are never trained on, with lengths from "
            f"{self.sequences.shortest} to {self.sequences.longest}, {share:.2%} were answered "
            "without a single wrong token, by greedy search. Below, each head of the decoder's "
            "last layer: a row for every token that is written, dark where it looks in the source.",
        )
        if len(batch) == 0:
            return
        mask, labels = batch.source_mask[0], batch.mask[0]
        source, target = batch.source[:1, mask], batch.target[:1, labels]
        maps = model.attention_maps(source, target)[-1, 0]
        names = [f"head {head + 1}" for head in range(len(maps))]
        written = [_name(token) for token in batch.labels[0][labels].tolist()]
        read = [_name(token) for token in source[0].tolist()]
        run.figure("Where the decoder looks", draw_attention(maps, read, written, names))


def _until_end(tokens: Sequence[int]) -> Sequence[int]:
    return tokens[: tokens.index(END)] if END in tokens else tokens


def _name(token: int) -> str:
    return {BEGIN: "begin", END: "end"}.get(token, str(token - SPECIAL))


def _text(tokens: Sequence[int]) -> str:
    return " ".join(_name(token) for token in tokens)
