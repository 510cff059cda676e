"""What every benchmark shares: one JSON line out, medians and spread, the machine and versions."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence

__all__ = ["emit", "spread"]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median with the smallest and the largest value, to four figures."""
    named = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in named.items()}


def emit(name: str, figures: Mapping[str, object], packages: Sequence[str] = ("torch",)) -> None:
    """Print the result as one JSON line."""
    versions = {package: importlib.metadata.version(package) for package in packages}
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "cpu": _processor()}
    print(json.dumps({"bench": name, **figures, "versions": versions, "machine": machine}))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor()
