"""``monro doctor``: what this machine has, what would fail on it, and how to mend that."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.errors import UsageError
from launch.folder import claim
from launch.recipe import recipes

__all__ = ["Finding", "doctor", "findings"]

GIB = 2**30
_OPTIONAL = {
    "deepspeed": "needed for the ZeRO strategies only: pip install deepspeed",
    "gymnasium": "needed for reinforcement learning on environments: pip install gymnasium",
    "tensorboard": "needed for --trackers tensorboard: pip install 'monro[tensorboard]'",
    "datasets": "needed for tasks from the Hugging Face hub: pip install datasets",
    "reasoning-gym": "needed for the miniature's tasks: pip install reasoning-gym",
    "math-verify": "needed to compare answers as formulas: pip install math-verify",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    state: Literal["good", "note", "broken"] = "good"
    """``note``: something works less well or not at all; ``broken``: without it nothing works."""
    mend: str = ""


def doctor() -> int:
    """Print what was found; return 1 if something that is needed is broken, else 0."""
    from rich.console import Console
    from rich.table import Table

    found = findings()
    table = Table(title="monro doctor", title_justify="left", show_lines=False)
    for column in ("", "what", "found", "to mend it"):
        table.add_column(column, overflow="fold")
    marks = {"good": "[green]ok[/]", "note": "[yellow]--[/]", "broken": "[red]!![/]"}
    for finding in found:
        cells = (finding.what, finding.found, finding.mend)
        table.add_row(marks[finding.state], *(cell.replace("[", r"\[") for cell in cells))
    Console().print(table)
    broken = [finding.what for finding in found if finding.state == "broken"]
    print(f"broken: {', '.join(broken)}" if broken else "everything that is needed works")
    return 1 if broken else 0


def findings() -> list[Finding]:
    """Look at everything; a look that fails is itself a finding."""
    found: list[Finding] = []
    for look in (_python, _packages, _torch, _imports, _machine, _folders, _recipes):
        try:
            found += look()
        except Exception as error:
            found.append(Finding(look.__name__.strip("_"), _line(error), "broken", "see the error"))
    return found


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _python() -> Iterator[Finding]:
    text = (
        f"{platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}"
    )
    old = sys.version_info < (3, 11)
    mend = "monro needs Python 3.11 or newer" if old else ""
    yield Finding("Python", text, "broken" if old else "good", mend)


# -- packages ------------------------------------------------------------------------------------


def _packages() -> Iterator[Finding]:
    """Compare what is installed with what monro asks for."""
    asked = importlib.metadata.requires("monro") or []
    yield Finding("monro", importlib.metadata.version("monro"))
    for requirement in asked:
        if ";" in requirement:  # belongs to an extra, or to another system
            continue
        match = re.match(r"([A-Za-z0-9_.-]+)(.*)", requirement)
        if match is None:
            continue
        name, wanted = match.group(1), match.group(2).strip()
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            mend = _OPTIONAL.get(name.lower(), f"pip install '{requirement}'")
            state: Literal["note", "broken"] = "note" if name.lower() in _OPTIONAL else "broken"
            yield Finding(name, "not installed", state, mend)
            continue
        if _admits(wanted, version):
            yield Finding(name, version)
        else:
            yield Finding(name, version, "note", f"untested: pip install '{requirement}'")


def _admits(wanted: str, version: str) -> bool:
    try:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet
    except ImportError:
        return True
    try:
        return SpecifierSet(wanted).contains(version, prereleases=True)
    except InvalidSpecifier:
        return True


def _imports() -> Iterator[Finding]:
    """Import what is often broken though it is installed."""
    for name in ("transformers", "accelerate", "tokenizers", "safetensors"):
        try:
            importlib.import_module(name)
            if name == "transformers":  # lazily imported: a clash shows only here
                importlib.import_module("transformers.models.qwen2.modeling_qwen2")
        except Exception as error:
            hint = "pip install --force-reinstall " + name
            if importlib.util.find_spec("torchvision") is not None:
                hint = "a torchvision of another build breaks it: pip uninstall torchvision"
            yield Finding(f"import {name}", _line(error), "broken", hint)


# -- devices -------------------------------------------------------------------------------------


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        yield Finding("import torch", _line(error), "broken", "pip install torch")
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
            text = f"{device.name}, {device.total_memory / GIB:.0f} GiB, {bf16}"
            yield Finding(f"GPU {index}", text)
    elif torch.version.cuda is not None and shutil.which("nvidia-smi"):
        mend = "the driver is older than this torch wants, or CUDA_VISIBLE_DEVICES hides the GPUs"
        yield Finding("GPU", f"none that torch {torch.__version__} can use", "note", mend)
    else:
        yield Finding("GPU", "none: everything runs on the CPU")
    yield Finding("torch threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores")
    gloo = torch.distributed.is_available() and torch.distributed.is_gloo_available()
    mend = "" if gloo else "--processes needs a torch that is built with gloo"
    found = "gloo" if gloo else "no gloo"
    yield Finding("several processes", found, "good" if gloo else "note", mend)


def _machine() -> Iterator[Finding]:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    mend = "" if compiler else "torch.compile and DeepSpeed need one: apt-get install g++"
    found = compiler or "none"
    yield Finding("C++ compiler", found, "good" if compiler else "note", mend)
    memory = _meminfo()
    if memory is not None:
        free, total = memory
        few = free < 2
        mend = "a run of the miniature needs about 2 GiB" if few else ""
        text = f"{free:.1f} of {total:.1f} GiB available"
        yield Finding("memory", text, "note" if few else "good", mend)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total / GIB
        few = size < 0.5
        mend = (
            "data loaders of several processes need more: docker run --shm-size=1g" if few else ""
        )
        yield Finding("shared memory", f"{size:.1f} GiB", "note" if few else "good", mend)


def _meminfo() -> tuple[float, float] | None:
    """Return available and total memory in GiB, or None where /proc does not tell."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    sizes = {m[1]: int(m[2]) / 2**20 for m in re.finditer(r"(\w+):\s+(\d+) kB", text)}
    if not {"MemAvailable", "MemTotal"} <= sizes.keys():
        return None
    return sizes["MemAvailable"], sizes["MemTotal"]


# -- folders and recipes -------------------------------------------------------------------------


def _folders() -> Iterator[Finding]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free / GIB
    few = free < 2
    mend = "checkpoints need room: free some, or choose another --output" if few else ""
    yield Finding("disk", f"{free:.1f} GiB free in {here}", "note" if few else "good", mend)
    yield _try_folder("runs here", here, "choose an --output that can be written to")
    yield _try_folder("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to another one")


def _try_folder(what: str, path: Path, mend: str) -> Finding:
    try:
        with tempfile.TemporaryDirectory(dir=path) as folder:
            claim(Path(folder) / "run", "").close()
    except (OSError, UsageError) as error:
        return Finding(what, _line(error), "note", mend)
    return Finding(what, f"{path} can be written to and locked")


def _recipes() -> Iterator[Finding]:
    known = recipes()
    unreadable = [name for name, recipe in known.items() if "cannot be read" in recipe.summary]
    if not known:
        yield Finding("recipes", "none", "broken", "pip install --force-reinstall monro")
    elif unreadable:
        mend = "the package that brings it is broken: install it anew"
        yield Finding("recipes", f"not found: {', '.join(unreadable)}", "broken", mend)
    else:
        yield Finding("recipes", ", ".join(known))
