"""``monro run``: everything that can be checked is, then the recipe runs, here or in workers."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

from launch import processes
from launch.command_line import Option, Parsed
from launch.config import configure, resumable_keys, to_yaml
from launch.errors import UsageError
from launch.folder import check_claim
from launch.hang import is_watched
from launch.recipe import Job, Recipe
from launch.scalars import FlagText, convert_scalar
from launch.signals import STOP
from launch.supervise import RELAUNCHES, supervise

__all__ = [
    "CONFIG_OPTION",
    "RUN_OPTIONS",
    "as_program",
    "complete_yaml",
    "configured",
    "run_recipe",
]

CONFIG_OPTION = Option(
    "config", "Start from a YAML file, complete or partial; flags win over it", "FILE"
)
RUN_OPTIONS = (
    CONFIG_OPTION,
    Option("output", "The run folder (default: runs/RECIPE)", "DIR"),
    Option("resume", "Go on with the run in the output folder; start it if there is none"),
    Option("overwrite", "Remove the run in the output folder first"),
    Option("processes", "Start so many processes on this machine (default: 1)", "N"),
    Option("supervise", "After a fault, begin again at the last complete checkpoint"),
    Option("relaunches", "With --supervise: so often without a new checkpoint (default: 3)", "N"),
)
# Libraries that talk about their own future; what they say of the user's doing is shown.
_NOISY = (
    "accelerate|datasets|deepspeed|huggingface_hub|matplotlib|numba|tokenizers|torch|transformers"
)
_ADVICE = "--resume goes on from the last checkpoint"
_QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def configured(recipe: Recipe, parsed: Parsed) -> Job:
    """Return the recipe's config with the keys of ``--config`` and the flags.

    Raises:
        UsageError: The file cannot be read, or a key or a value is wrong.
    """
    default = recipe.load()
    text, file = "", parsed.options.get("config", "")
    if "config" in parsed.options:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"--config {file} cannot be read: {reason}") from None
    own = [option.name for option in RUN_OPTIONS]
    return configure(default, text=text, source=file, changes=parsed.changes, also=own)


def complete_yaml(recipe: Recipe, job: Job) -> str:
    """Return the complete config as it stands in the run folder."""
    return f"# recipe: {recipe.name}\n{to_yaml(job)}"


def run_recipe(recipe: Recipe, parsed: Parsed) -> int:
    """Check everything that can be checked, then start the workers or run in this process.

    Returns:
        The exit code.

    Raises:
        UsageError: What was asked for cannot be run; no folder was made.
    """
    with as_program():
        return _run(recipe, parsed)


def _run(recipe: Recipe, parsed: Parsed) -> int:
    worker = processes.is_worker()
    asked = _asked_processes(parsed.options.get("processes"))
    job = configured(recipe, parsed)
    config_yaml, resumable = complete_yaml(recipe, job), resumable_keys(job)
    output = _output(recipe, job, parsed.options)
    relaunches = _relaunches(parsed.options, output)
    resume, overwrite = "resume" in parsed.options, "overwrite" in parsed.options
    if not 0 <= job.seed < 2**63:
        raise UsageError(f"seed={job.seed}: give a number from 0 to 2**63 - 1")
    try:
        job.check()
    except ValueError as error:
        raise UsageError(str(error)) from error
    if output is not None and not worker:
        note = check_claim(
            output, config_yaml, resume=resume, overwrite=overwrite, resumable=resumable
        )
        if note:
            print(f"monro: {note}", file=sys.stderr)
    if asked is not None and asked > 1 and not worker:
        processes.check_devices(asked)
    if worker:
        processes.check_machine()
    limit = job.runtime.hang_seconds
    if relaunches is not None and output is not None:
        return supervise(parsed.words, asked or 1, output, relaunches, limit)
    alone = (asked or 1) == 1
    if not worker and (not alone or (limit is not None and not is_watched())):
        return processes.start(
            ["run", *parsed.words], asked or 1, advice=_ADVICE, alone=alone, hang_seconds=limit
        )

    from launch.runtime import Runtime

    with Runtime(
        job.runtime,
        output=output,
        config_yaml=config_yaml,
        seed=job.seed,
        trackers=job.trackers,
        resume=resume,
        overwrite=overwrite,
        processes=asked,
        resumable=resumable,
    ) as run:
        writes_report = output is not None and run.is_main
        with processes.crash_noted():
            job.run(run)
    if writes_report and output is not None:
        from launch.report import write_report

        print(write_report(output), flush=True)
    return 0


def _output(recipe: Recipe, job: Job, options: dict[str, str]) -> Path | None:
    if "output" in options:
        if not options["output"]:
            raise UsageError("--output needs the name of a folder")
        return Path(options["output"])
    if job.leaves_run:
        return Path("runs") / recipe.folder
    for switch in ("resume", "overwrite"):
        if switch in options:
            raise UsageError(f"--{switch} needs an --output: {recipe.name} leaves no run by itself")
    return None


def _relaunches(options: dict[str, str], output: Path | None) -> int | None:
    """Return how often a fault is followed by a relaunch; None if nobody supervises."""
    if "supervise" not in options:
        if "relaunches" in options:
            raise UsageError("--relaunches is how often --supervise begins again: give both")
        return None
    if output is None:
        raise UsageError("--supervise needs an --output: without a run folder nothing is saved")
    if processes.launched_processes() is not None:
        raise UsageError("--supervise starts the processes itself: use monro run --processes N")
    limit = _number(options.get("relaunches", str(RELAUNCHES)), "relaunches")
    if limit < 0:
        raise UsageError(f"relaunches: got {limit}, expected at least 0")
    return limit


def _number(text: str, name: str) -> int:
    return int(str(convert_scalar(FlagText(text), int, name)))


def _asked_processes(text: str | None) -> int | None:
    """Return how many processes were asked for, here or from a launcher; None if nobody asked."""
    given = None if text is None else _number(text, "processes")
    if given is not None and given < 1:
        raise UsageError(f"processes: got {given}, expected at least 1")
    launched = processes.launched_processes()
    if launched is None:
        return given
    if launched > 1 and not processes.is_worker():
        raise UsageError(
            f"accelerate was asked for {launched} processes and started one, as it does with --cpu "
            "or without GPUs: use accelerate launch --multi_gpu, or monro run with --processes"
        )
    if given is not None and given != launched:
        raise UsageError(f"--processes {given}, but the launcher has started {launched}")
    return launched


@contextlib.contextmanager
def as_program() -> Iterator[None]:
    """Set the process up for a run: libraries' noise off, warnings in one line, signals as exits.

    Ctrl-C stays an exception of its own; the other signals that tell a run to stop end it with 128
    + signal wherever it is. Within the steps, ``HeldSignals`` takes their place.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {
        number: signal.signal(number, _terminate)
        for number in STOP
        if in_main_thread and number != signal.SIGINT
    }
    with warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=rf"({_NOISY})(\.|$)")
        warnings.showwarning = _show_warning
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    rank = f"process {os.environ['RANK']}: " if processes.is_worker() else ""
    print(f"warning: {rank}{' '.join(str(message).split())}", file=file or sys.stderr, flush=True)
