"""``monro launch``: the command that each machine runs, and the Slurm job that runs them all.

What ``--dry-run`` prints is what would be run: one function makes both.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import processes
from launch.child import run_child
from launch.command_line import Option, Parsed
from launch.errors import UsageError
from launch.recipe import Recipe
from launch.running import RUN_OPTIONS, as_program, configured
from launch.scalars import FlagText, convert_scalar
from launch.torchrun import HANDED_ON

__all__ = [
    "CLUSTER_OPTIONS",
    "CONFIGS",
    "LAUNCH_OPTIONS",
    "Cluster",
    "environment",
    "launch",
    "node_command",
    "run_words",
    "slurm_script",
]

CLUSTER_OPTIONS = (
    Option("nodes", "Machines (default: 1)", "N"),
    Option("gpus_per_node", "Processes on each, one a GPU (default: the GPUs here, or 1)", "N"),
    Option("rank", "Without Slurm: which machine this is, from 0", "K"),
    Option("main_address", "Without Slurm: where machine 0 is reached", "HOST"),
    Option("port", "Of machine 0 (default: 29500; with Slurm the first free one)", "PORT"),
    Option("container", "An Apptainer image, as configs/container/Containerfile makes it", "IMAGE"),
    Option("grace", "Seconds to finish a step and save when told to stop (default: 120)", "S"),
    Option("slurm", "Submit a job; after a preemption it goes back into the queue and resumes"),
    Option("time", "With --slurm: the time limit of one turn, 4:00:00", "TIME"),
    Option("partition", "With --slurm: where to run", "NAME"),
    Option("cpus_per_gpu", "With --slurm: cores for each process (default: 8)", "N"),
    Option("sbatch", "With --slurm: more options of sbatch, 'account=lab mem=0'", "WORDS"),
    Option("dry_run", "Print what would be run, and run nothing"),
)
_OWN = {option.name: bool(option.metavar) for option in CLUSTER_OPTIONS}
LAUNCH_OPTIONS = (
    *(o for o in RUN_OPTIONS if o.name in ("config", "output", "resume", "overwrite")),
    *CLUSTER_OPTIONS,
)
CONFIGS = Path(__file__).parent / "configs"
_IN_CONTAINER = Path("/opt/monro/configs")
_PORT = 29500  # accelerate's and torchrun's own
_NO_SPACES = re.compile(r"[\w.,:=@%/+\[\]~-]+")


class _Variable(str):
    """A word that the shell of a machine replaces."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Which machines a run takes, and how they find each other."""

    nodes: int = 1
    gpus_per_node: int = 1
    rank: int | None = None
    """Of this machine; None: of none in particular."""
    main_address: str = ""
    """Of machine 0."""
    port: int | None = None
    """Of machine 0; None: a free one, or the usual one."""
    container: str = ""
    grace: int = 120
    """Seconds from a warning to the end."""
    slurm: bool = False
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, ``name=value``."""

    @property
    def processes(self) -> int:
        """On all machines together."""
        return self.nodes * self.gpus_per_node


def run_words(words: Sequence[str]) -> list[str]:
    """Return the arguments of ``monro run`` among those of ``monro launch``.

    >>> run_words(["sft", "--nodes", "2", "--steps=3", "--dry-run", "--gpus-per-node=8"])
    ['sft', '--steps=3']
    """
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, _ = word[2:].partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or name not in _OWN:
            kept.append(word)
        elif _OWN[name] and not equals:
            next(rest)
    return kept


def environment(grace: int) -> dict[str, str]:
    """Return what torchrun reads: which signals it hands on, and how long it waits for workers.

    >>> environment(120)["PET_SHUTDOWN_TIMEOUT"]
    '110'
    """
    return {
        "PET_SIGNALS_TO_HANDLE": ",".join(number.name for number in HANDED_ON),
        "PET_SHUTDOWN_TIMEOUT": str(grace - 10),
    }


def node_command(words: Sequence[str], cluster: Cluster, rank: str, port: str) -> list[str]:
    """Return the command that one machine runs.

    Args:
        words: The arguments after ``run``.
        cluster: The machines.
        rank: The machine's number, from 0; or what its shell makes that of.
        port: Of machine 0; or what the shell makes that of.
    """
    inside = ["apptainer", "exec", "--nv", cluster.container] if cluster.container else []
    if cluster.processes == 1:  # it needs no launcher, and hears every signal itself
        python = "python" if cluster.container else sys.executable
        return [*inside, python, "-m", "launch", "run", *words]
    configs = _IN_CONTAINER if cluster.container else CONFIGS
    where = ["--main_process_port", port]
    file = "processes.yaml"
    if cluster.nodes > 1:
        file = "accelerate/several_nodes.yaml"
        where = ["--machine_rank", rank, "--main_process_ip", cluster.main_address, *where]
    return [
        *(*inside, _accelerate(cluster), "launch", "--config_file", str(configs / file)),
        *("--multi_gpu", "--num_machines", str(cluster.nodes)),
        *("--num_processes", str(cluster.processes), *where),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        *("-m", "launch", "run", *words, "--processes", str(cluster.processes)),
    ]


def _accelerate(cluster: Cluster) -> str:
    beside = Path(sys.executable).with_name("accelerate")
    return str(beside) if beside.exists() and not cluster.container else "accelerate"


def slurm_script(words: Sequence[str], cluster: Cluster, name: str) -> str:
    """Return the job that ``sbatch`` reads.

    Args:
        words: The arguments after ``run``.
        cluster: The machines.
        name: Of the job.
    """
    options = [
        f"job-name=monro-{name}",
        f"nodes={cluster.nodes}",
        "ntasks-per-node=1",
        f"gpus-per-node={cluster.gpus_per_node}",
        "output=%x-%j.log",
        "open-mode=append",
        "requeue",
        f"signal=B:USR1@{cluster.grace}",
        *cluster.sbatch,
    ]
    command = node_command(words, cluster, _Variable("$SLURM_NODEID"), _Variable("$MAIN_PORT"))
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{option}" for option in options),
            "",
            f"nodes={cluster.nodes}",
            f"grace={cluster.grace}",
            f"port={cluster.port or ''}",
            "IFS= read -r -d '' node <<'NODE'",
            f"exec {_shell(command)}",
            "NODE",
            "",
            (CONFIGS / "slurm" / "job.sh").read_text(encoding="utf-8"),
        ]
    )


def _shell(words: Sequence[str]) -> str:
    """Return a line of shell; only variables are left for it to replace."""
    return " ".join(f'"{w}"' if isinstance(w, _Variable) else shlex.quote(w) for w in words)


def launch(recipe: Recipe, parsed: Parsed) -> int:
    """Run a recipe on this machine's share of a cluster, or submit it; or print what would be.

    Returns:
        The exit code; 128 + N if signal N told it to stop.

    Raises:
        UsageError: What was asked for cannot be run; nothing was.
    """
    for name in ("processes", "relaunches"):
        if name in parsed.changes:
            raise UsageError(
                f"--{name} is for monro run: monro launch counts the processes, --nodes times "
                "--gpus_per_node, and Slurm begins again"
            )
    cluster, dry = _cluster(parsed.options), "dry_run" in parsed.options
    job = configured(recipe, parsed)
    words = run_words(parsed.words)
    if not dry and not cluster.container:
        try:
            job.check()
        except ValueError as error:
            raise UsageError(str(error)) from error
    if cluster.slurm:
        if (job.leaves_run or "output" in parsed.options) and "resume" not in parsed.options:
            words.append("--resume")
        return _submit(slurm_script(words, cluster, recipe.folder), dry=dry)
    ranks = range(cluster.nodes) if cluster.rank is None else [cluster.rank]
    commands = [_here(words, cluster, rank) for rank in ranks]
    if dry:
        print(*map(shlex.join, commands), sep="\n")
        return 0
    if cluster.rank is None:
        raise UsageError(
            f"--nodes {cluster.nodes} without --slurm: give each machine its --rank, from 0 to "
            f"{cluster.nodes - 1}"
        )
    return _run(commands[0], cluster)


def _here(words: Sequence[str], cluster: Cluster, rank: int) -> list[str]:
    port = cluster.port or (0 if cluster.nodes == 1 else _PORT)
    command = node_command(words, cluster, str(rank), str(port))
    if cluster.processes == 1:
        return command
    return ["env", *(f"{k}={v}" for k, v in environment(cluster.grace).items()), *command]


def _run(command: Sequence[str], cluster: Cluster) -> int:
    processes.check_devices(cluster.gpus_per_node)
    if cluster.rank == 0 and (cluster.nodes > 1 or cluster.port):
        _check_port(cluster.port or _PORT)
    with as_program():
        try:
            code, heard = run_child(command, own_session=True)
        except FileNotFoundError:
            raise UsageError(f"there is no {command[0]} here") from None
    if heard and code != 0:
        return 128 + heard
    return code if code >= 0 else 128 - code


def _check_port(port: int) -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError as error:
            raise UsageError(
                f"--port {port} cannot be used here ({error.strerror}): give every machine another"
            ) from None


def _submit(script: str, *, dry: bool) -> int:
    if dry:
        print(script, end="")
        return 0
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise UsageError("there is no sbatch here: submit from a machine of the Slurm cluster")
    return subprocess.run([sbatch], input=script, text=True, check=False).returncode


# -- what was asked for --------------------------------------------------------------------------


def _cluster(options: Mapping[str, str]) -> Cluster:
    """Return the machines that the flags name.

    Raises:
        UsageError: They contradict each other, or a value is impossible.
    """
    slurm = "slurm" in options
    nodes = _number(options, "nodes", 1, least=1)
    others = ("rank", "main_address") if slurm else ("time", "partition", "cpus_per_gpu", "sbatch")
    for name in others:
        if name in options:
            how = "without --slurm, which knows it itself" if slurm else "with --slurm"
            raise UsageError(f"--{name} is for a launch {how}")
    if slurm and "overwrite" in options:
        raise UsageError(
            "--overwrite would remove the run whenever Slurm begins it again: remove it by hand"
        )
    rank = _number(options, "rank", 0, least=0) if "rank" in options or nodes == 1 else None
    if rank is not None and rank >= nodes:
        raise UsageError(f"--rank {rank}: {nodes} machines have the ranks 0 to {nodes - 1}")
    main_address = options.get("main_address", "")
    if not main_address and rank:
        raise UsageError(f"--rank {rank} needs --main_address, where machine 0 is reached")
    port = _number(options, "port", 0, least=1) or None
    if port is not None and port > 65535:
        raise UsageError(f"--port {port}: ports end at 65535")
    return Cluster(
        nodes=nodes,
        gpus_per_node=_gpus(options, slurm=slurm),
        rank=rank,
        main_address=_Variable("$MAIN_ADDRESS") if slurm else main_address or socket.gethostname(),
        port=port,
        container=options.get("container", ""),
        grace=_number(options, "grace", 120, least=20),
        slurm=slurm,
        sbatch=_sbatch(options) if slurm else (),
    )


def _gpus(options: Mapping[str, str], *, slurm: bool) -> int:
    if "gpus_per_node" in options:
        return _number(options, "gpus_per_node", 1, least=1)
    if slurm:
        raise UsageError("--slurm needs --gpus_per_node: this machine may have others than the job")
    return max(processes.gpus(), 1)


def _sbatch(options: Mapping[str, str]) -> tuple[str, ...]:
    words = [f"cpus-per-gpu={_number(options, 'cpus_per_gpu', 8, least=1)}"]
    words += [f"{name}={options[name]}" for name in ("time", "partition") if name in options]
    words += [word.removeprefix("--") for word in options.get("sbatch", "").split()]
    for word in words:
        if not _NO_SPACES.fullmatch(word):
            raise UsageError(f"{word!r} cannot stand in a line of #SBATCH")
    return tuple(words)


def _number(options: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    if name not in options:
        return default
    value = int(str(convert_scalar(FlagText(options[name]), int, name)))
    if value < least:
        raise UsageError(f"--{name} {value}: give at least {least}")
    return value
