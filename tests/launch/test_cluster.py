from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.cli import main
from launch.cluster import CONFIGS, Cluster, node_command, slurm_script
from launch.config import from_yaml
from launch.runtime import RuntimeConfig

ROOT = Path(__file__).parent.parent.parent
TOY = '''
"""A recipe that trains one weight on as many rows as there are."""
from __future__ import annotations
import time
from dataclasses import dataclass, field
from typing import ClassVar
import torch
from launch.config import resumable
from launch.runtime import Runtime, RuntimeConfig

@dataclass(frozen=True, kw_only=True, slots=True)
class Toy:
    leaves_run: ClassVar[bool] = True
    steps: int = resumable(3)
    pause: float = resumable(0.0)
    broken: bool = False
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        if self.broken:
            raise ValueError("the model folder is missing")

    def run(self, run: Runtime) -> None:
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(model.weight)
        sgd = torch.optim.SGD(model.parameters(), 0.0625, momentum=0.75)
        model, optimizer = run.prepare(model, sgd)
        state = {"model": model, "optimizer": optimizer}
        for step in run.steps(self.steps, state=state):
            run.backward(model(torch.ones(2, 1)[run.share(2)]).pow(2).sum())
            run.step(optimizer)
            run.log(step, {"loss": run.loss})
            time.sleep(self.pause)

def toy() -> Toy:
    return Toy()
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def undisturbed(steps: int) -> float:
    """Return the weight after so many steps in this process."""
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], 0.0625, momentum=0.75)
    for _ in range(steps):
        optimizer.zero_grad()
        (weight.square() * 2).backward()
        optimizer.step()
    return weight.item()


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["launch", "toy:toy", *words, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def flag(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


# -- what is printed ----------------------------------------------------------------------------


def test_one_process_needs_no_launcher(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = printed(capsys, "--gpus-per-node", "1", "--steps", "4")
    assert shlex.split(line) == [sys.executable, *shlex.split("-m launch run toy:toy --steps 4")]


def test_each_machine_has_its_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--nodes=2", "--gpus-per-node", "4", "--main_address", "a.b", "--steps=4"]
    first, second = map(shlex.split, printed(capsys, *words).splitlines())
    assert [flag(words, "--machine_rank") for words in (first, second)] == ["0", "1"]
    for each in (first, second):
        assert flag(each, "--main_process_ip") == "a.b"
        assert flag(each, "--main_process_port") == "29500"
        assert (flag(each, "--num_machines"), flag(each, "--num_processes")) == ("2", "8")
        assert each[each.index("-m") :] == shlex.split(
            "-m launch run toy:toy --steps=4 --processes 8"
        )
    assert shlex.split(printed(capsys, *words, "--rank", "1")) == second


def test_a_container_wraps_the_command_of_a_machine() -> None:
    cluster = Cluster(gpus_per_node=2, container="my image.sif")
    words = node_command(["toy"], cluster, "0", "0")
    assert words[:6] == ["apptainer", "exec", "--nv", "my image.sif", "accelerate", "launch"]
    assert flag(words, "--config_file") == "/opt/monro/configs/processes.yaml"
    alone = Cluster(container="image.sif")
    line = shlex.join(node_command(["toy"], alone, "0", "0"))
    assert line == "apptainer exec --nv image.sif python -m launch run toy"


def test_what_is_run_is_what_was_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program(folder / "bin" / "accelerate", '#!/bin/bash\nprintf "%s\\0" "$0" "$@" > ran\nexit 7\n')
    monkeypatch.setattr(sys, "executable", str(folder / "bin" / "python"))
    words = ["--gpus-per-node", "2", "--output", "a folder's name"]
    line = shlex.split(printed(capsys, *words))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)]
    assert main(["launch", "toy:toy", *words]) == 7
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)] == before
    ran = (folder / "ran").read_text().split("\0")[:-1]
    assert line[0] == "env"
    assert line[3:] == ran
    assert line[1:3] == [
        "PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT",
        "PET_SHUTDOWN_TIMEOUT=110",
    ]


def test_what_sbatch_reads_is_what_was_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program(folder / "bin" / "sbatch", '#!/bin/bash\ncat > job\necho "$#" > arguments\nexit 3\n')
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    words = ["--slurm", "--nodes", "2", "--gpus_per_node", "8", "--time", "4:00:00"]
    words += ["--sbatch", "account=lab --mem=0", "--output", "it's here"]
    script = printed(capsys, *words)
    assert main(["launch", "toy:toy", *words]) == 3
    assert (folder / "job").read_text() == script
    assert (folder / "arguments").read_text() == "0\n"
    options = re.findall(r"^#SBATCH --(\S+)$", script, flags=re.MULTILINE)
    assert options == [
        *("job-name=monro-toy", "nodes=2", "ntasks-per-node=1", "gpus-per-node=8"),
        *("output=%x-%j.log", "open-mode=append", "requeue", "signal=B:USR1@120"),
        *("cpus-per-gpu=8", "time=4:00:00", "account=lab", "mem=0"),
    ]
    assert "-m launch run toy:toy --output 'it'\"'\"'s here' --resume --processes 16" in script


def test_a_word_reaches_the_run_through_shell_and_srun(folder: Path) -> None:
    cluster = Cluster(nodes=1, gpus_per_node=1, slurm=True)
    script = slurm_script(["x", "--output", "$HOME 'a' `b` \\"], cluster, "x")
    head = script[: script.index("\nfail()")]
    shown = 'eval "set -- ${node#exec}"; printf "%s\\0" "$@"'
    done = subprocess.run(["bash", "-c", f"{head}\n{shown}"], capture_output=True, check=True)
    words = done.stdout.decode().split("\0")[:-1]
    assert words[1:] == ["-m", "launch", "run", "x", "--output", "$HOME 'a' `b` \\"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--nodes 0", "--nodes 0: give at least 1"),
        ("--nodes two", "nodes: got 'two', expected an integer"),
        ("--nodes 2", "give each machine its --rank, from 0 to 1"),
        ("--nodes 2 --rank 2", "2 machines have the ranks 0 to 1"),
        ("--nodes 2 --rank 1", "needs --main_address"),
        ("--port 70000", "ports end at 65535"),
        ("--grace 5", "--grace 5: give at least 20"),
        ("--time 1:00", "--time is for a launch with --slurm"),
        ("--slurm --rank 0", "--rank is for a launch without --slurm"),
        ("--slurm", "--slurm needs --gpus_per_node"),
        ("--slurm --gpus_per_node 1 --overwrite", "whenever Slurm begins it again"),
        ("--slurm --gpus_per_node 1 --partition #x", "cannot stand in a line of #SBATCH"),
        ("--slurm --gpus_per_node 1", "there is no sbatch here"),
        ("--processes 2", "monro launch counts the processes"),
        ("--stepz 2", "did you mean"),
        ("--broken true", "the model folder is missing"),
    ],
)
def test_a_launch_that_cannot_be_is_one_line_and_code_2(
    words: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "toy:toy", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_a_port_that_is_taken_is_one_line_and_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = ["--nodes", "2", "--rank", "0", "--gpus_per_node", "1", "--port", port]
        assert main(["launch", "toy:toy", *words]) == 2
    err = capsys.readouterr().err
    assert f"--port {port} cannot be used here (Address already in use)" in err
    assert err.count("\n") == 1


# -- the files in configs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [
        ("processes.yaml", "MULTI_GPU", 1, 2),
        ("accelerate/one_gpu.yaml", "NO", 1, 1),
        ("accelerate/eight_gpus.yaml", "MULTI_GPU", 1, 8),
        ("accelerate/several_nodes.yaml", "MULTI_GPU", 2, 16),
    ],
)
def test_accelerate_reads_its_files(name: str, kind: str, machines: int, processes: int) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    loaded = load_config_from_file(str(CONFIGS / name))
    assert loaded.distributed_type == kind
    words = ["--config_file", str(CONFIGS / name), "-m", "launch"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (arguments.num_machines, arguments.num_processes) == (machines, processes)
    assert arguments.multi_gpu == (processes > 1)
    assert (arguments.mixed_precision, arguments.use_cpu) == ("no", False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """What a file of settings is read into, as into any recipe's config."""

    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def test_the_files_for_deepspeed_are_configs_whose_settings_have_an_effect() -> None:
    from launch.zero_engine import check_settings

    files = sorted((CONFIGS / "deepspeed").iterdir())
    assert [path.stem for path in files] == ["zero1", "zero2", "zero3", "zero3_offload"]
    for path in files:
        runtime = from_yaml(path.read_text(), Holder(), source=str(path)).runtime
        assert runtime.strategy == path.stem.removesuffix("_offload")
        assert runtime.offload == path.stem.endswith("_offload")
        assert runtime.deepspeed
        check_settings(runtime.deepspeed)


@pytest.mark.parametrize("cluster", [Cluster(slurm=True), Cluster(nodes=2, gpus_per_node=8)])
def test_bash_can_read_the_job(cluster: Cluster) -> None:
    subprocess.run(["bash", "-n", CONFIGS / "slurm" / "job.sh"], check=True)
    script = slurm_script(["toy"], cluster, "toy")
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=True)
    assert done.stderr == ""


def test_the_container_file_copies_what_there_is_and_puts_the_configs_where_they_are_sought() -> (
    None
):
    text = (CONFIGS / "container" / "Containerfile").read_text().replace("\\\n", " ")
    steps = [line.split() for line in text.splitlines() if line and line[0] not in "# "]
    assert {step[0] for step in steps} == {"FROM", "RUN", "ENV", "COPY"}
    copied = {source for step in steps if step[0] == "COPY" for source in step[1:-1]}
    assert copied >= {"pyproject.toml", "constraints.txt", "launch", "rl", "posttrain"}
    for source in copied:
        assert (ROOT / source).exists(), source
    for step in steps:
        if step[0] == "RUN":
            subprocess.run(["bash", "-n", "-c", " ".join(step[1:])], check=True)
    assert "--constraint /opt/monro/source/constraints.txt" in text
    words = node_command(["toy"], Cluster(nodes=2, container="i"), "0", "1")
    linked, file = flag(words, "--config_file").split("/configs/")
    assert f'/configs" {linked}/configs' in text.replace(")/configs", ")/configs")
    assert (CONFIGS / file).exists()


# -- real processes ------------------------------------------------------------------------------


def records(folder: Path) -> list[int]:
    try:
        lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line)["step"] for line in lines]


def final_weight(folder: Path, steps: int) -> float:
    checkpoint = folder / "out" / "checkpoints" / f"step-{steps:08}"
    assert (checkpoint / "COMPLETE").exists()
    return load_file(checkpoint / "model.safetensors")["weight"].item()


def start(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch", "launch", "toy:toy", "--output", "out", *words],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("", 0))
        return str(server.getsockname()[1])


def wait_for(what: Any, process: subprocess.Popen[str]) -> None:  # noqa: ANN401 a condition
    end = time.monotonic() + 100
    while not what():
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


@pytest.mark.distributed
def test_two_machines_train_together_and_stop_when_one_is_told_to(folder: Path) -> None:
    words = ["--nodes", "2", "--gpus-per-node", "1", "--main-address", "127.0.0.1"]
    words += ["--port", free_port(), "--steps", "100000", "--pause", "0.02"]
    machines = [start(folder, *words, "--rank", rank) for rank in "01"]
    wait_for(lambda: len(records(folder)) > 1, machines[0])
    machines[1].send_signal(signal.SIGUSR1)
    for machine in machines:
        machine.communicate(timeout=60)
    assert machines[1].returncode == 138
    assert machines[0].returncode != 0
    last = records(folder)[-1]
    assert final_weight(folder, last) == undisturbed(last)


SRUN = """#!{python}
import os, signal, subprocess, sys
words = sys.argv[1:]
options = [word for word in words[: words.index("bash")]]
nodes = int(next(o for o in options if o.startswith("--nodes=")).partition("=")[2])
command = words[len(options):]

def family(parent):
    for entry in os.listdir("/proc"):
        try:
            fields = open(f"/proc/{{entry}}/stat").read().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if entry.isdecimal() and int(fields[1]) == parent:
            yield int(entry)
            yield from family(int(entry))

def forward(number, frame):  # as Slurm does: to every process of the step
    for pid in list(family(os.getpid())):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

signal.signal(signal.SIGUSR1, forward)
tasks = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_NODEID": str(node)}})
    for node in range(nodes)
]
sys.exit(max(task.wait() for task in tasks))
"""
SBATCH = """#!/bin/bash
cat > job
export SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=$(sed -n 's/^#SBATCH --nodes=//p' job)
export SLURM_JOB_NODELIST=here
touch requeued
while [ -e requeued ]; do
    rm requeued
    echo turn >> turns
    bash job &
    echo $! > shell
    wait $!
    code=$?
done
exit $code
"""
SCONTROL = """#!/bin/bash
case "$1" in
show) echo localhost ;;
requeue) [ "$2" = 7 ] && touch requeued ;;
esac
"""


@pytest.mark.distributed
@pytest.mark.parametrize("nodes", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_job_that_is_preempted_goes_on_as_if_it_had_not_been(folder: Path, nodes: int) -> None:
    program(folder / "bin" / "srun", SRUN.format(python=sys.executable))
    program(folder / "bin" / "sbatch", SBATCH)
    program(folder / "bin" / "scontrol", SCONTROL)
    words = ["--slurm", "--nodes", str(nodes), "--gpus-per-node", str(2 // nodes)]
    words += ["--steps", "60", "--pause", "0.05"]
    job = start(folder, *words, PATH=f"{folder / 'bin'}:{os.environ['PATH']}")
    wait_for(lambda: len(records(folder)) > 1, job)
    os.kill(int((folder / "shell").read_text()), signal.SIGUSR1)  # B: to the batch shell alone
    _, err = job.communicate(timeout=100)
    assert job.returncode == 0, err
    assert (folder / "turns").read_text() == "turn\n" * 2
    assert "SIGUSR1: finishing this step, then saving" in err
    assert "job 7 goes back into the queue" in err
    saved = sorted(path.name for path in (folder / "out" / "checkpoints").iterdir())
    assert len(saved) == 2
    assert saved[0] < saved[1] == "step-00000060"  # of the first turn, and of the second
    assert records(folder) == list(range(1, 61))
    assert final_weight(folder, 60) == undisturbed(60)


def test_a_job_on_another_number_of_machines_is_refused(folder: Path) -> None:
    script = slurm_script(["toy"], Cluster(nodes=2, slurm=True), "toy")
    done = subprocess.run(
        ["bash"],
        input=script,
        env=os.environ | {"SLURM_JOB_NUM_NODES": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == ("monro: the job has 1 nodes, not 2: sbatch may not change --nodes\n")


def test_a_job_whose_port_is_taken_is_refused(folder: Path) -> None:
    program(folder / "bin" / "scontrol", SCONTROL)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        cluster = Cluster(nodes=2, slurm=True, port=taken.getsockname()[1])
        done = subprocess.run(
            ["bash"],
            input=slurm_script(["toy"], cluster, "toy"),
            env=os.environ
            | {"SLURM_JOB_NUM_NODES": "2", "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(f"monro: port {cluster.port} of localhost is taken")
    assert done.stderr.count("\n") == 1
