"""A byte model as a job: any mixer, on any text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from generative.attention.decoder_lm import DecoderConfig, DecoderLM
from generative.attention.delta_mixer import DeltaRule
from generative.attention.flash import flash_attention
from generative.attention.gated_mixers import GatedAttention, MixedChunkAttention
from generative.attention.linear_mixer import LinearAttention
from generative.attention.mixers import MixerConfig, SoftmaxAttention
from generative.attention.positions import ALiBi, Rotary
from generative.attention_figures import draw_attention
from generative.influence import influence
from generative.library_text import BYTES, StandardLibrary, TextSource, parse_text
from generative.model_folder import keep_architecture, new_model, save_model
from generative.train_characters import CharacterTraining, train_characters
from launch.config import resumable
from launch.errors import UsageError
from launch.runtime import Runtime, RuntimeConfig
from launch.spelling import did_you_mean

__all__ = ["CharacterJob", "parse_mixer", "sampled_text"]

_SHOWN = 24
"""Bytes in the figure of influences."""
_NAMED: dict[str, Callable[[], MixerConfig]] = {
    "softmax": lambda: SoftmaxAttention(heads=4, positions=Rotary(), query_key_norm=True),
    "window": lambda: SoftmaxAttention(heads=4, positions=Rotary(), query_key_norm=True, window=64),
    "alibi": lambda: SoftmaxAttention(heads=4, positions=ALiBi(), query_key_norm=True),
    "flash": lambda: SoftmaxAttention(
        heads=4, positions=Rotary(), query_key_norm=True, attention=flash_attention
    ),
    "linear": lambda: LinearAttention(heads=4),
    "retention": lambda: LinearAttention(heads=4, normalize=False, decays=True),
    "delta": lambda: DeltaRule(heads=4),
    "gau": lambda: GatedAttention(key_size=32, positions=Rotary()),
    "flash-gau": lambda: MixedChunkAttention(key_size=32, chunk=64, positions=Rotary()),
}


def parse_mixer(text: str) -> MixerConfig:
    """Read ``--mixer NAME``, such as ``softmax``, ``linear``, ``gau`` or ``flash-gau``.

    Raises:
        UsageError: There is no such name.
    """
    if text not in _NAMED:
        near = did_you_mean(text, _NAMED) or f"; expected {', '.join(_NAMED)}"
        raise UsageError(f"unknown mixer {text}{near}")
    return _NAMED[text]()


@dataclass(frozen=True, kw_only=True, slots=True)
class CharacterJob(CharacterTraining):
    """A decoder learns the bytes of a text."""

    leaves_run: ClassVar[bool] = True
    text: TextSource = field(default_factory=StandardLibrary, metadata={"parse": parse_text})
    """``stdlib``: the sources of Python's standard library; or a file."""
    mixer: MixerConfig = field(default_factory=_NAMED["softmax"], metadata={"parse": parse_mixer})
    """``softmax``, ``window``, ``alibi``, ``flash``, ``linear``, ``retention``, ``delta``, ``gau``
    or ``flash-gau``; it takes the place of the model's."""
    model: DecoderConfig = field(
        default_factory=lambda: DecoderConfig(vocabulary=BYTES, width=128, blocks=2)
    )
    sampled: int = resumable(400)
    """Bytes of each sample at the end; with what begins it, at most ``context``."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        CharacterTraining.__post_init__(self)
        if self.sampled < 0:
            raise ValueError(f"sampled={self.sampled}: give 0 (none) or a number of bytes")

    def check(self) -> None:
        """Raise UsageError for a missing text, or a model that cannot be built or hold it."""
        self.text.check()
        if self.model.vocabulary < BYTES:
            raise UsageError(f"model.vocabulary={self.model.vocabulary}: bytes take {BYTES}")
        try:
            self.mixer.build(self.model.width)
        except ValueError as error:
            raise UsageError(f"mixer with model.width={self.model.width}: {error}") from None
        if self.model.most_tokens < self.context:
            raise UsageError(
                f"model.most_tokens={self.model.most_tokens}, but context={self.context}: raise "
                "the one or lower the other"
            )
        if self.model.mixer not in (DecoderConfig().mixer, self.mixer):
            raise UsageError("model.mixer is given, but mixer takes its place: set --mixer instead")

    def run(self, run: Runtime) -> None:
        """Train, sample, and leave the model in the run folder."""
        text, heldout = self.text.load()
        config = replace(self.model, mixer=self.mixer)
        model = cast(DecoderLM, new_model(config, self.seed))
        keep_architecture(model, run)
        count = sum(p.numel() for p in model.parameters())
        run.print(f"{count:,} parameters, {len(text):,} bytes, {len(heldout):,} held out")
        train_characters(self, model, text, heldout, run)
        model.eval()
        begins = [b"def ", b"class ", b"import "]
        columns = min(self.context, self.model.most_tokens)
        rows = [
            {
                "prompt": begin.decode(),
                "text": sampled_text(
                    model,
                    begin,
                    max(0, min(self.sampled, columns - len(begin))),
                    run.stream("text", i),
                ),
            }
            for i, begin in enumerate(begins)
        ]
        run.samples(self.steps, rows)
        self._show_influence(model, heldout, run)
        if run.output is not None:
            folder = run.output / "model"
            run.on_main(lambda: save_model(model, folder))
            run.print(f"The model is in {folder}: generative.model_folder.load_model reads it.")

    def _show_influence(self, model: DecoderLM, heldout: Tensor, run: Runtime) -> None:
        """Draw which bytes each prediction rests on, at the end of the held-out text."""
        shown = heldout[-(min(_SHOWN, self.context) + 1) :].long()
        maps = influence(model, shown.to(model.embedding.weight.device))
        read, told = ([repr(chr(byte))[1:-1] for byte in x.tolist()] for x in (shown, shown[1:]))
        drawn = draw_attention(maps[None] ** 0.5, read[:-1], told, ["share of influence, its root"])
        run.figure("Which bytes a prediction rests on", drawn)


@torch.no_grad()
def sampled_text(model: DecoderLM, begin: bytes, count: int, generator: torch.Generator) -> str:
    """Return ``begin`` continued by ``count`` bytes drawn from the model, with its own state."""
    device = model.embedding.weight.device
    state = model.new_state(1, len(begin) + count)
    drawn = list(begin)
    last = torch.tensor([drawn], device=device)
    for _ in range(count):
        probabilities = torch.softmax(model.extend(last, state)[0, -1, :BYTES].float().cpu(), -1)
        token = int(torch.multinomial(probabilities, 1, generator=generator))
        drawn.append(token)
        last = torch.tensor([[token]], device=device)
    return bytes(drawn).decode("utf-8", errors="replace").replace("\0", "\u2400")
