"""The one runtime: the same loop on one process and on many, with nothing lost on the way."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from launch import saving, streams
from launch.artifacts import Artifacts
from launch.backends import Backend
from launch.batch import Splittable
from launch.checkpoint import Stateful
from launch.errors import UsageError
from launch.export import ARCHITECTURE
from launch.folder import Claim, atomic_write, claim
from launch.hang import watched
from launch.memory import checkpoint_activations, keep_freed_memory
from launch.metrics import Console, JsonLines, Metric, Phases, combine, kept_lines
from launch.placement import placement_of
from launch.settings import RuntimeConfig
from launch.signals import HeldSignals
from launch.stepping import TrainingStep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Runtime", "RuntimeConfig"]

B = TypeVar("B", bound=Splittable)


class Runtime:
    """Trains anywhere, logs, saves and resumes. ``Runtime()`` writes nothing.

    The training step is the same under every strategy::

        for step in run.steps(1_000, state={"model": model, "optimizer": optimizer}):
            scale = run.sum(count(batch)).clamp(min=1)
            for rows in run.micro_batches(batch, 8):
                run.backward(loss_sum(model, rows) / scale)
            grad_norm = run.step(optimizer, max_norm=1.0)
            run.log(step, {"loss": run.loss, "grad_norm": grad_norm})

    Args:
        config: Strategy, precision and the like.
        output: The run folder; None writes nothing.
        config_yaml: The complete config of the run, kept as ``config.yaml``.
        seed: Of every stream.
        trackers: accelerate's trackers, such as ``"tensorboard"``.
        resume: Go on from the newest whole checkpoint in ``output``.
        overwrite: Remove the run that ``output`` holds.
        processes: How many were asked for; None does not compare.

    Raises:
        UsageError: On every process alike, if the folder cannot be used, or if other processes
            started than were asked for.
    """

    def __init__(
        self,
        config: RuntimeConfig | None = None,
        *,
        output: Path | str | None = None,
        config_yaml: str = "{}\n",
        seed: int = 0,
        trackers: Sequence[str] = (),
        resume: bool = False,
        overwrite: bool = False,
        processes: int | None = None,
        resumable: frozenset[str] = frozenset(),
    ) -> None:
        config = RuntimeConfig() if config is None else config
        self.config, self.seed, self.resume = config, seed, resume
        self._given_seed = seed
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        keep_freed_memory()
        self.backend = Backend(
            config.strategy,
            config.precision,
            processes,
            trackers,
            offload=config.offload,
            deepspeed=config.deepspeed,
        )
        self.backend.check_alike(config_yaml, config, seed)
        self._claim: Claim | None = None
        self._title = "training"
        self._architectures: dict[Path, Callable[[Path], None]] = {}
        folder = None if output is None else Path(output)

        def take() -> None:
            if folder is not None:
                self._claim = claim(
                    folder, config_yaml, resume=resume, overwrite=overwrite, resumable=resumable
                )

        self.backend.on_main(take)
        try:
            self._open(folder)
            if folder is not None and trackers:
                self.backend.on_main(lambda: self.backend.track(folder / "trackers", folder.name))
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise

    def _open(self, output: Path | None) -> None:
        """Start the state that a stage has of its own."""
        self.output = output
        self.phase = Phases()
        self._begun = False
        self._held_is_logged = False
        self._training = TrainingStep(self.backend, output)
        self._models: list[nn.Module] = []
        self._saver: saving.Saver | None = None
        if output is not None:
            self._saver = saving.Saver(self.backend, output / "checkpoints", self.config.keep)
        writes = output is not None and self.is_main
        self._metrics = JsonLines(output / "metrics.jsonl") if output and writes else None
        self._artifacts = Artifacts(output) if output and writes else None
        self._console: Console | None = None
        self._start = self._last_log = time.perf_counter()

    # -- processes ---------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """This process's index."""
        return self.backend.rank

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self.backend.world_size

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.backend.rank == 0

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return self.backend.device

    def share(self, count: int) -> range:
        """Return this process's part of ``count`` items: contiguous, as even as can be."""
        rank, world = self.rank, self.world_size
        return range(rank * count // world, (rank + 1) * count // world)

    def sum(self, x: Tensor | float) -> Tensor:
        """Return the sum of ``x`` over all processes, element by element, without gradient."""
        return self.backend.all_reduce(torch.as_tensor(x))

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of all elements of ``x`` on all processes, a scalar; over nothing, 0."""
        total = self.sum(
            torch.stack([x.sum(dtype=torch.float64), x.new_tensor(x.numel()).double()])
        )
        return (total[0] / total[1].clamp(min=1)).to(x.dtype if x.is_floating_point() else None)

    def gather(self, x: Tensor) -> Tensor:
        """Return every process's rows, ``(sum of B, ...)``, in order of rank; B may differ."""
        if self.world_size == 1:
            return x.detach()
        parts = self.backend.gather_objects(x.detach().cpu())
        return torch.cat(parts).to(x.device)

    def gather_objects(self, items: Sequence[Any]) -> list[Any]:
        """Return every process's items as one list, in order of rank."""
        return [item for part in self.backend.gather_objects(list(items)) for item in part]

    def on_main(self, function: Callable[[], object]) -> None:
        """Run ``function`` on the main process; its OSError or UsageError is raised on all."""
        self.backend.on_main(function)

    # -- random streams ----------------------------------------------------------------------

    def stream(self, name: str, step: int = 0, index: int = 0) -> torch.Generator:
        """Return a generator keyed by the run's seed, ``name``, ``step`` and a global index."""
        return streams.stream(self.seed, name, step, index)

    def seeds(self, name: str, step: int, indices: Iterable[int]) -> list[int]:
        """Return one integer for each global index, keyed like ``stream``."""
        return streams.keys(self.seed, name, step, indices)

    def key_by(self, seed: int) -> None:
        """Key every stream by ``seed`` as well; another call takes this one's place.

        For loops whose config has a seed, so that it counts whatever runtime they are given.
        """
        self.seed = streams.key(self._given_seed, f"config/{seed}")

    # -- the training step -------------------------------------------------------------------

    @overload
    def prepare(self, model: nn.Module) -> nn.Module: ...
    @overload
    def prepare(self, model: nn.Module, optimizer: Optimizer, /) -> tuple[nn.Module, Optimizer]: ...
    @overload
    def prepare(self, model: nn.Module, *optimizers: Optimizer) -> tuple[Any, ...]: ...
    def prepare(self, model: nn.Module, *optimizers: Optimizer) -> nn.Module | tuple[Any, ...]:
        """Move a model to its device, and place it over the processes as the strategy has it.

        The optimizers are those of its parameters, usually one. Under a strategy that cuts tensors
        they are given the pieces, so build them before and use what is returned, which is the same
        objects. A frozen model has none, and comes back alone.

        While it is prepared, go through the prepared model, or ``run.gathered``. When the loop of
        ``run.steps`` has ended, the model is whole again.

        Returns:
            The prepared model, and the optimizers.

        Raises:
            UsageError: The strategy is not possible with this model or optimizer.
        """
        if self.config.activation_checkpointing and optimizers:
            checkpoint_activations(model)
        prepared = self.backend.prepare(model, optimizers)
        self._models.append(prepared)
        return (prepared, *optimizers) if optimizers else prepared

    @contextlib.contextmanager
    def gathered(self, *models: nn.Module) -> Iterator[None]:
        """Have models whole, and as they were given to ``prepare``, inside the block.

        For what reads the weights otherwise than through the prepared model: rollouts, evaluation,
        a copy for a target network. Changes made to them inside the block are lost. Every process
        has to enter it; where models are whole anyhow, it costs nothing.
        """
        with contextlib.ExitStack() as stack:
            for model in models:
                stack.enter_context(placement_of(model).gathered())
            yield

    def release(self, *models: nn.Module) -> None:
        """Make prepared models whole and ordinary again: by default all of this run or stage.

        Every process has to call it; ``run.steps`` does at its end.
        """
        for model in models or self._models:
            self.backend.release(model)
        self._models = [] if not models else [x for x in self._models if x not in models]

    def micro_batches(self, batch: B, rows: int) -> Iterator[B]:
        """Yield this process's ``batch`` in parts of at most ``rows`` rows.

        Every process yields equally many, empty ones included, so that the collectives of the
        strategies stay in step; gradients are exchanged in the backward pass of the last.
        """
        return self._training.micro_batches(batch, rows)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, this process's share of a sum over all processes."""
        self._training.backward(loss)

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None = None) -> Tensor:
        """Clip the gradients to ``max_norm``, update, clear them.

        Returns:
            The global norm of the gradients before clipping, a scalar.

        Raises:
            UsageError: The loss or a gradient is not finite: names the step and the rows, which
                are saved in the run folder. On every process alike.
        """
        return self._training.step(optimizer, max_norm)

    @property
    def loss(self) -> Tensor:
        """The last step's loss, a scalar: the sum over micro-batches and processes."""
        return self._training.loss

    @property
    def skipped_steps(self) -> int:
        """Updates that fp16 left out because a gradient overflowed."""
        return self._training.skipped_steps

    # -- the loop ----------------------------------------------------------------------------

    def steps(
        self,
        total: int,
        *,
        state: Mapping[str, Stateful],
        save_every: int = 0,
        headline: Sequence[str] = (),
        title: str = "",
    ) -> Iterator[int]:
        """Yield 1 ... ``total``, and see to resuming, saving, signals and the progress display.

        A resumed run goes on after its newest whole checkpoint. ``state`` is saved every
        ``save_every`` steps (0: never between) and at the end. SIGTERM, SIGUSR1 and Ctrl-C finish
        the step, save, and exit with 128 + signal. After the last step the models are released. The
        display is entitled ``title``, by default the stage's name.
        """
        done = self.restore(state) if self.resume else 0
        if done > total:
            raise UsageError(
                f"steps={total}, but the run is at step {done}: give at least {done}, or start "
                "anew with --overwrite"
            )
        quiet = not self.is_main
        with (
            HeldSignals(active=self.output is not None) as signals,
            contextlib.nullcontext()
            if quiet
            else Console(title or self._title, total, done, headline) as console,
            watched(self.config.hang_seconds, self.rank) as begin,
        ):
            self._console = console
            self._last_log = time.perf_counter()
            for step in range(done + 1, total + 1):
                self._training.number = step
                begin(step)
                yield step
                stop = self._agree(signals.received)
                if stop or step == total:
                    self.save(step, state)
                elif self.due(step, save_every):
                    self._begin_saving(step, state)
                if stop:
                    raise SystemExit(128 + stop)
        self._console = None
        self.release()

    def due(self, step: int, every: int) -> bool:
        """Return whether something that happens every ``every`` steps (0: never) is due."""
        return every > 0 and step % every == 0

    def _agree(self, signal: int) -> int:
        """Return a signal that any process has received, so that all stop at the same step.

        A checkpoint whose files all processes have written is completed here.
        """
        writes = self._saver is not None and self._saver.is_writing
        if self.world_size > 1:
            found = self.backend.all_reduce(torch.tensor([signal, int(writes)]), largest=True)
            signal, writes = int(found[0]), bool(found[1])
        if self._saver is not None and self._saver.is_begun and not writes:
            self._saver.finish()
        return signal

    def save(self, step: int, state: Mapping[str, Stateful]) -> None:
        """Write the checkpoint after ``step`` steps; without a run folder, nothing.

        Raises:
            UsageError: It could not be written; the checkpoints before it are intact.
        """
        self._begin_saving(step, state)
        if self._saver is not None:
            with self.phase("save"):
                self._saver.finish()

    def _begin_saving(self, step: int, state: Mapping[str, Stateful]) -> None:
        """Copy the state, and have it written while training goes on."""
        if self._saver is None:
            return
        with self.phase("save"):
            saving.keep_architectures(self.backend, self._architectures)
            self._saver.save(step, state, self._seconds())

    def keep_architecture(self, write: Callable[[Path], None]) -> None:
        """Keep in ``architecture/`` what ``monro export`` needs besides a checkpoint.

        It is made before the next checkpoint, whole or not at all, and once: a resumed run finds
        it. A stage without one has that of its run.

        Args:
            write: Given an empty folder, writes the files that an exported folder is to have
                besides the weights, and ``launch.export.SHAPES``. Called on the main process.
        """
        if self.output is not None:
            self._architectures[self.output / ARCHITECTURE] = write

    def restore(self, state: Mapping[str, Stateful]) -> int:
        """Take the newest whole checkpoint; return its step, or 0 if there is none.

        A damaged checkpoint is skipped with a warning that names it. Records of later steps are
        dropped from the run folder.
        """
        if self.output is None:
            return 0
        step, seconds = saving.restore(self.backend, self.output / "checkpoints", state)
        self._held_is_logged = step > 0
        self._start = time.perf_counter() - seconds
        self.backend.on_main(lambda: self._drop_records_after(step))
        return step

    def _drop_records_after(self, step: int) -> None:
        """Drop the records of later steps: they will be made again."""
        self.close_files()
        for name in ("metrics.jsonl", "samples.jsonl", "items.jsonl"):
            path = self.output / name if self.output else Path(name)
            if path.exists():
                atomic_write(path, kept_lines(path, lambda other: other <= step))

    # -- what is written ---------------------------------------------------------------------

    def log(self, step: int, metrics: Mapping[str, Metric]) -> dict[str, float]:
        """Write one record of ``metrics.jsonl``, show it, and return its figures.

        The first of a run tells how many bytes of parameters and of optimizer state a process
        holds, at most.

        ``Mean`` and ``Rate`` are combined over all processes in one exchange; a plain number or a
        scalar tensor is taken from the main process as it is.
        """
        now = time.perf_counter()
        if self._models and not self._held_is_logged:
            parameters, states = self.backend.held_bytes()
            metrics = {**metrics, "bytes/parameters": parameters, "bytes/optimizer": states}
            self._held_is_logged = True
        if self.config.precision == "fp16":
            metrics = {**metrics, "skipped_steps": self.skipped_steps}
        figures = combine(metrics, self.backend.all_reduce, now - self._last_log)
        self._last_log = now
        if not self.is_main:
            return figures
        record = {
            "step": step,
            "seconds": round(self._seconds(), 6),
            **figures,
            **self.phase.take(),
        }
        if self._claim is not None and not self._begun:
            self._claim.begin()  # work has been done: a run that was overwritten goes now
            self._begun = True
        if self._metrics is not None:
            self._metrics.write(record)
        self.backend.log(step, figures)
        if self._console is not None:
            self._console.update(step, figures)
        return figures

    def _seconds(self) -> float:
        return time.perf_counter() - self._start

    def figure(self, name: str, figure: Figure | Path) -> None:
        """Show a matplotlib figure in the report, or a picture from a file, such as a GIF."""
        if self._artifacts is not None:
            self._artifacts.figure(name, figure)

    def table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Show a table in the report; the keys of the first row are its columns."""
        if self._artifacts is not None:
            self._artifacts.table(name, rows)

    def note(self, name: str, text: str) -> None:
        """Show paragraphs under a heading in the report."""
        if self._artifacts is not None:
            self._artifacts.note(name, text)

    def side_by_side(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Show texts side by side in the report: a column for each source."""
        if self._artifacts is not None:
            self._artifacts.side_by_side(name, rows)

    def samples(self, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Append sampled texts to ``samples.jsonl``."""
        if self._artifacts is not None:
            self._artifacts.samples(step, rows)

    def print(self, text: str) -> None:
        """Print a line once, on the main process."""
        if self.is_main:
            print(text, flush=True)

    # -- stages and the end ------------------------------------------------------------------

    @contextlib.contextmanager
    def stage(self, name: str, config_yaml: str = "") -> Iterator[Runtime]:
        """Give a stage its own run folder, ``stages/NAME``; without one, nothing is written.

        ``--resume`` goes through finished stages quickly: their last checkpoint is their end.
        """
        stage = object.__new__(Runtime)
        stage.config, stage.seed = self.config, streams.key(self.seed, f"stage/{name}")
        stage._given_seed = stage.seed
        stage.resume, stage.backend = self.resume, self.backend
        stage._claim, stage._title = self._claim, name
        stage._architectures = self._architectures
        folder = None if self.output is None else self.output / "stages" / name
        if folder is not None:
            self.backend.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
            if config_yaml:
                self.backend.on_main(lambda: atomic_write(folder / "config.yaml", config_yaml))
        stage._open(folder)
        try:
            yield stage
        finally:
            stage.close_files()

    def close_files(self) -> None:
        """Close what is open in the run folder; the next write opens it again."""
        if self._metrics is not None:
            self._metrics.close()
        if self._artifacts is not None:
            self._artifacts.close()

    def close(self) -> None:
        """Close files, trackers and process groups, and free the run folder for others."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close_files()
        if self._saver is not None and self.world_size == 1:
            self._saver.finish()  # of what was begun before an error, nothing is lost
        if self._claim is not None:  # a run that failed before any work leaves no folder behind
            self._claim.__exit__(kind, error, trace)
        self.backend.end()
