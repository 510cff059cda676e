"""Known devices, and how long work and exchanges take on them: estimates, not measurements."""

from __future__ import annotations

from dataclasses import dataclass

from launch.errors import UsageError
from launch.spelling import did_you_mean

__all__ = ["DEVICES", "Device", "Exchange", "Stage", "device", "seconds_sent", "seconds_worked"]

TERA, GIGA = 1e12, 1e9
BUSY_COMPUTE = 0.4
"""Share of a device's peak that training reaches (40%: what large runs report, e.g. Chowdhery et
al. 2022, arXiv:2204.02311, table 3: 46%; Korthikanti et al. 2022, arXiv:2205.05198: 42 to 56%)."""
BUSY_MEMORY = 0.6
"""Share of the memory's bandwidth that decoding reaches."""
BUSY_LINKS = 0.7
"""Share of the links' bandwidth that collectives reach."""
PER_NODE = 8
"""Devices of a machine; more of them exchange over the network."""
NETWORK = 50 * GIGA
"""Bytes a second and device between machines: 400 Gbit/s, one card a device."""
_LATENCY = 20e-6
"""Seconds that a collective takes however small it is."""


@dataclass(frozen=True, slots=True)
class Device:
    """Peak figures from the vendor's data sheet, dense, without sparsity."""

    name: str
    half: float
    """FLOP/s in bfloat16 (float16 where there is none)."""
    single: float
    """FLOP/s in float32, without tensor cores: torch's default."""
    bandwidth: float
    """Bytes a second to its memory."""
    link: float
    """Bytes a second to its neighbours in a machine, one way."""


DEVICES = {
    x.name: x
    for x in (
        Device("b200", 2250 * TERA, 75 * TERA, 8.0 * TERA, 900 * GIGA),
        Device("h200", 989 * TERA, 67 * TERA, 4.8 * TERA, 450 * GIGA),
        Device("h100", 989 * TERA, 67 * TERA, 3.35 * TERA, 450 * GIGA),
        Device("a100", 312 * TERA, 19.5 * TERA, 2.04 * TERA, 300 * GIGA),
        Device("mi300x", 1307 * TERA, 163 * TERA, 5.3 * TERA, 448 * GIGA),
        Device("l40s", 362 * TERA, 91.6 * TERA, 0.864 * TERA, 32 * GIGA),
        Device("a10", 125 * TERA, 31.2 * TERA, 0.6 * TERA, 32 * GIGA),
        Device("v100", 125 * TERA, 15.7 * TERA, 0.9 * TERA, 150 * GIGA),
        Device("rtx4090", 165 * TERA, 82.6 * TERA, 1.008 * TERA, 32 * GIGA),
        Device("cpu", 0.1 * TERA, 0.1 * TERA, 0.02 * TERA, 1 * GIGA),
    )
}


def device(name: str) -> Device:
    """Return the device of this name.

    Raises:
        UsageError: It is not known; names those that are.
    """
    if name.lower() not in DEVICES:
        near = did_you_mean(name, DEVICES) or f"; known are {', '.join(DEVICES)}"
        raise UsageError(f"unknown device {name}{near}")
    return DEVICES[name.lower()]


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a step on one device, bound by arithmetic or by memory."""

    name: str
    flops: float
    bytes: float = 0.0
    """Read from memory and written to it, where that may be what takes the time."""
    half: bool = False
    """Whether products are in bfloat16 or float16."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a step sends."""

    bytes: float
    """Of reduce-scatters and all-gathers; an all-reduce counts twice."""
    calls: int


def seconds_worked(stage: Stage, on: Device) -> float:
    """Return ``max(flops / reached FLOP/s, bytes / reached bandwidth)``."""
    peak = on.half if stage.half else on.single
    return max(stage.flops / (peak * BUSY_COMPUTE), stage.bytes / (on.bandwidth * BUSY_MEMORY))


def seconds_sent(exchange: Exchange, count: int, on: Device) -> float:
    """Return the seconds of an exchange between ``count`` devices, none of it hidden behind work.

    A ring passes each byte on (N - 1)/N times; between machines the network is the slowest link.
    """
    if count == 1:
        return 0.0
    speed = (on.link if count <= PER_NODE else min(on.link, NETWORK)) * BUSY_LINKS
    return exchange.bytes * (count - 1) / count / speed + exchange.calls * _LATENCY
