"""``monro plan``: what a recipe takes of each device under each strategy, as a table or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from launch.command_line import Parsed
from launch.errors import UsageError
from launch.plan import PARTS, Placement, Plannable, Workload, fastest, lay_out
from launch.plan_devices import (
    BUSY_COMPUTE,
    BUSY_LINKS,
    BUSY_MEMORY,
    NETWORK,
    PER_NODE,
    Device,
    device,
)
from launch.recipe import Job, Recipe
from launch.running import as_program, configured
from launch.scalars import FlagText, convert_scalar

__all__ = ["plan_recipe"]

_DEFAULT = "h100"
_GB = 1e9


def plan_recipe(recipe: Recipe, parsed: Parsed) -> int:
    """Plan a recipe with the flags of ``monro run`` and print it; return the exit code.

    Raises:
        UsageError: A flag is wrong, the model is not there, or the recipe cannot be planned.
    """
    gpus = int(_number(parsed, "gpus", int, "1"))
    memory = _number(parsed, "memory", float, "80") * _GB
    name = parsed.options.get("device")
    on = device(_DEFAULT if name is None else name)
    with as_program():
        job = _plannable(configured(recipe, parsed), recipe.name)
        kind = _kind(name)
        try:
            work = job.workload(gpus, kind)
            found = lay_out(lambda count: job.workload(count, kind), gpus, memory, on)
        except ValueError as error:
            raise UsageError(str(error)) from error
    notes = [*work.notes, *_about(on, kind, gpus, given=name is not None)]
    if "json" in parsed.options:
        _print_json(recipe.name, found, work, notes, (gpus, memory, on))
    else:
        _print_table(recipe.name, found, work, notes, (gpus, memory, on))
    return 0


def _plannable(job: Job, name: str) -> Plannable:
    """Return the job, or raise UsageError if it does not say what its step takes."""
    if not isinstance(job, Plannable):
        raise UsageError(
            f"{name} cannot be planned: {type(job).__name__} has no method workload, which says "
            "what a step takes. Language models' sft, dpo, grpo and reward-model have; networks of "
            "agents fit any device; of a recipe of stages, plan each stage's own recipe"
        )
    return job


def _number(parsed: Parsed, name: str, kind: type, default: str) -> float:
    value = convert_scalar(FlagText(parsed.options.get(name, default)), kind, name)
    number = float(str(value))
    if kind is int and number < 1:
        raise UsageError(f"{name}: got {value}, expected at least 1")
    if not 0 < number < math.inf:
        raise UsageError(f"{name}: got {value}, expected a positive number of GB")
    return number


def _kind(name: str | None) -> str:
    """Return whether the work is done as on a CPU or a GPU; without a name, as on this machine."""
    if name is not None:
        return "cpu" if name.lower() == "cpu" else "cuda"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _about(on: Device, kind: str, gpus: int, *, given: bool) -> list[str]:
    """Return what was assumed of the devices."""
    said = [
        f"Seconds are an estimate: an {on.name} at {BUSY_COMPUTE:.0%} of its peak, "
        f"{BUSY_MEMORY:.0%} of its memory's bandwidth and {BUSY_LINKS:.0%} of its links', nothing "
        "hidden behind anything else."
    ]
    if gpus > PER_NODE:
        said.append(f"Machines have {PER_NODE} devices, and {NETWORK / 1e9:.0f} GB/s a device.")
    if not given and kind == "cpu":
        said.append(
            "Memory is counted as on this machine's CPU; on a GPU logits are taken in larger "
            "parts, and attention has a mask: name it with --device."
        )
    return said


def _print_json(
    name: str,
    found: Sequence[Placement],
    work: Workload,
    notes: Sequence[str],
    about: tuple[int, float, Device],
) -> None:
    best = fastest(found)
    gpus, memory, on = about
    print(
        json.dumps(
            {
                "recipe": name,
                "gpus": gpus,
                "memory": int(memory),
                "device": on.name,
                "precision": work.precision,
                "recommended": None if best is None else best.strategy,
                "strategies": {
                    x.strategy: {
                        "parts": x.parts,
                        "total": x.total,
                        "peak": x.peak,
                        "fits": x.fits,
                        "seconds": x.seconds,
                    }
                    for x in found
                },
                "notes": list(notes),
            }
        )
    )


def _print_table(
    name: str,
    found: Sequence[Placement],
    work: Workload,
    notes: Sequence[str],
    about: tuple[int, float, Device],
) -> None:
    from rich.console import Console
    from rich.table import Table

    gpus, memory, on = about
    best = fastest(found)
    shown = [part for part in PARTS if any(x.parts[part] for x in found)]
    table = Table(
        title=f"{name} on {gpus} x {on.name} of {memory / _GB:g} GB, a device",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for x in found:
        table.add_column(x.strategy, justify="right", no_wrap=True)
    for part in shown:
        table.add_row(part.replace("_", " "), *(_size(x.parts[part]) for x in found))
    table.add_section()
    table.add_row("at its peak", *(_size(x.total) for x in found))
    table.add_row("fits", *("[green]yes[/]" if x.fits else "[red]no[/]" for x in found))
    table.add_row("s a step", *(f"{x.seconds:.3g}" for x in found))
    console = Console()
    console.print(table)
    if best is None:
        least = min(found, key=lambda x: x.total)
        print(
            f"None fits: {least.strategy} takes least, {_size(least.total)}, at its "
            f"{least.peak}. Take more devices, a smaller --micro_batch, or "
            "--runtime.activation_checkpointing true."
        )
    else:
        print(f"Use --runtime.strategy {best.strategy}: the fastest that fits.")
    print(f"Its peak is at the {(best or found[0]).peak}. Parts are the most that each takes, and")
    print(f"not all at that moment. {work.precision[:1].upper()}{work.precision[1:]}.")
    for note in notes:
        print(note)


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= 0.1 * size:
            return (
                f"{count / size:.1f} {unit}" if count < 100 * size else f"{count / size:.0f} {unit}"
            )
    return f"{count / 1e3:.0f} kB" if count else "0"
