from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from launch.cli import main
from launch.config import flags, from_yaml, override
from launch.recipe import find, recipes

TOY = '''
"""A recipe that trains one weight."""
from __future__ import annotations
from dataclasses import dataclass, field
from typing import ClassVar
import warnings
import torch
from launch.config import resumable
from launch.errors import UsageError
from launch.runtime import Runtime, RuntimeConfig

@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How fast."""
    value: float = 0.1
    """Of the weight."""

@dataclass(frozen=True, kw_only=True, slots=True)
class Toy:
    """A toy."""
    leaves_run: ClassVar[bool] = True
    steps: int = resumable(3)
    """Updates."""
    rate: Rate = field(default_factory=Rate)
    group_size: int = 4
    fail: str = ""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"group_size={self.group_size}: a group of one has no baseline")

    def check(self) -> None:
        if self.fail == "check":
            raise ValueError("the model folder\\nis missing")

    def run(self, run: Runtime) -> None:
        if self.fail == "usage":
            raise UsageError("the weights are corrupt")
        if self.fail == "exit":
            raise SystemExit(7)
        if self.fail == "interrupt":
            raise KeyboardInterrupt
        if self.fail == "crash":
            raise ZeroDivisionError("a bug")
        if self.fail == "warn":
            warnings.warn("all groups are equal:\\ntry more", UserWarning, stacklevel=1)
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(model.weight)
        model, optimizer = run.prepare(model, torch.optim.SGD(model.parameters(), self.rate.value))
        for step in run.steps(self.steps, state={"model": model, "optimizer": optimizer}):
            run.backward(model(torch.ones(1, 1)).sum())
            run.log(step, {"loss": run.loss, "grad_norm": run.step(optimizer)})

@dataclass(frozen=True, kw_only=True, slots=True)
class Silent:
    leaves_run: ClassVar[bool] = False
    seed: int = 0
    trackers: tuple[str, ...] = ()
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    def check(self) -> None: ...
    def run(self, run: Runtime) -> None:
        run.print("hello")

def toy() -> Toy:
    """Train one weight."""
    return Toy()

def silent() -> Silent:
    return Silent()
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a recipe in the working folder, which is a fresh one."""
    name = "toy_" + "".join(c if c.isalnum() else "_" for c in tmp_path.name)
    (tmp_path / f"{name}.py").write_text(TOY)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"{name}:toy"


def steps(folder: str) -> list[int]:
    text = Path(folder, "metrics.jsonl").read_text()
    return [json.loads(line)["step"] for line in text.splitlines()]


# -- what is printed -----------------------------------------------------------------------------


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("list", "show", "run", "launch", "plan", "report", "export", "doctor"):
        assert command in text
    assert main([]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    "command", ["list", "show", "run", "launch", "plan", "report", "export", "doctor"]
)
def test_each_command_has_a_page(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"usage: monro {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "show"])
def test_the_page_of_a_recipe_lists_its_flags_with_docs_and_defaults(
    command: str, toy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, toy, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Train one weight." in text
    assert "--steps INT Updates. (default: 3)" in text
    assert "--rate.value FLOAT Of the weight. (default: 0.1)" in text
    assert "How fast." in text
    assert ("--resume" in text) == (command == "run")


def test_list_shows_each_recipe_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert {"r1-mini", "r1-mini-control", "r1-zero-mini", "sft", "grpo", "eval"} <= set(names)
    assert {"chat", "sft-mini", "grpo-mini"} <= set(names)
    assert all(len(line.split()) > 2 for line in lines)


def test_show_prints_what_config_takes_back(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", toy, "--steps", "9", "--rate.value=-1e-4"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"# recipe: {toy}\nsteps: 9\nrate:\n  value: -0.0001\n")
    Path("c.yaml").write_text(text)
    assert main(["show", toy, "--config", "c.yaml"]) == 0
    assert capsys.readouterr().out == text
    assert main(["show", "--config=c.yaml", toy, "--steps", "10"]) == 0
    assert capsys.readouterr().out == text.replace("steps: 9", "steps: 10")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("monro ")


def test_help_and_list_import_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from launch.cli import main\n"
        "for words in (['--help'], ['run', '--help'], ['list']):\n"
        "    assert main(words) == 0\n"
        "heavy = {'torch', 'numpy', 'transformers', 'accelerate', 'datasets', 'matplotlib'}\n"
        "sys.exit(f'imported: {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# -- usage errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "unknown command rnu; did you mean run?"),
        (
            ["xyz"],
            "unknown command xyz; the commands are list, show, run, launch, plan, report, export, "
            "doctor",
        ),
        (["run"], "monro run needs a RECIPE: see monro run -h"),
        (["report"], "monro report needs a DIR: see monro report -h"),
        (["run", "r1-mni"], "unknown recipe r1-mni; did you mean r1-mini?"),
        (["run", "TOY", "more"], "unexpected argument 'more': see monro run --help"),
        (["run", "TOY", "--stepz", "3"], "unknown key stepz; did you mean steps?"),
        (["run", "TOY", "--outptu", "x"], "unknown key outptu; did you mean output?"),
        (["run", "TOY", "--rate.valeu=3"], "unknown key rate.valeu; did you mean rate.value?"),
        (["run", "TOY", "--steps"], "--steps needs a value"),
        (["run", "TOY", "--resum"], "--resum needs a value; did you mean resume?"),
        (["run", "TOY", "--seed", "--steps", "3"], "--seed needs a value"),
        (["run", "TOY", "--resume=yes"], "--resume takes no value, but got 'yes'"),
        (["run", "TOY", "-s", "3"], "unknown flag -s: flags are --name value or --name=value"),
        (["run", "TOY", "--steps", "x"], "steps: got 'x', expected an integer (int)"),
        (["run", "TOY", "--group_size", "1"], "group_size=1: a group of one has no baseline"),
        (["run", "TOY", "--fail", "check"], "the model folder is missing"),
        (["run", "TOY", "--fail", "usage"], "the weights are corrupt"),
        (["run", "TOY", "--output", ""], "--output needs the name of a folder"),
        (["run", "TOY", "--output", "file/x"], "the output folder file/x cannot be made: "),
        (["run", "TOY", "--processes", "0"], "processes: got 0, expected at least 1"),
        (["run", "TOY", "--processes", "two"], "processes: got 'two', expected an integer (int)"),
        (["run", "TOY", "--config", "no.yaml"], "--config no.yaml cannot be read: No such file"),
        (["run", "TOY", "--config", "file"], "file, line 2: "),
        (["show", "TOY", "--output", "x"], "unknown key output"),
        (["list", "--steps", "3"], "unknown flag --steps: see monro list --help"),
        (["report", "nowhere"], ""),
        (["run", "SILENT", "--resume"], "--resume needs an --output"),
        (["run", "SILENT", "--supervise"], "--supervise needs an --output"),
        (["run", "TOY", "--relaunches", "2"], "--relaunches is how often --supervise begins again"),
        (["run", "TOY", "--supervise", "--relaunches", "-1"], "relaunches: got -1, expected at le"),
        (["run", "TOY", "--resume", "--overwrite"], "--resume goes on with a run and --overwrite"),
    ],
)
def test_a_usage_error_is_one_line_with_exit_code_2_and_no_folder(
    words: list[str], message: str, toy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("steps: 1\n  seed: 2\n")
    named = {"TOY": toy, "SILENT": toy.replace(":toy", ":silent")}
    assert main([named.get(word, word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"monro: {message}")
    assert err.count("\n") == 1
    assert os.listdir() == ["file"]


# -- runs ----------------------------------------------------------------------------------------


def test_a_run_leaves_a_folder_and_prints_the_report_last(
    toy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", toy, "--rate.value", "0.5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "runs/toy/report.html"
    config = Path("runs/toy/config.yaml").read_text()
    assert config.startswith(f"# recipe: {toy}\nsteps: 3\nrate:\n  value: 0.5\n")
    assert steps("runs/toy") == [1, 2, 3]
    assert Path("runs/toy/report.html").exists()


def test_a_run_goes_on_only_with_resume_and_the_same_config(
    toy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", toy, "--output", "a", "--resume"]) == 0
    assert "nothing to resume in a: the run starts anew" in capsys.readouterr().err
    assert main(["run", toy, "--output", "a"]) == 2
    refusal = capsys.readouterr().err
    assert "--resume" in refusal
    assert "--overwrite" in refusal
    assert main(["run", toy, "--output", "a", "--resume", "--seed", "1"]) == 2
    assert "this has changed: seed." in capsys.readouterr().err
    assert steps("a") == [1, 2, 3]
    assert main(["run", toy, "--output", "a", "--resume", "--steps", "5"]) == 0
    assert steps("a") == [1, 2, 3, 4, 5]
    assert main(["run", toy, "--output", "a", "--overwrite", "--seed", "1", "--steps", "2"]) == 0
    assert steps("a") == [1, 2]


def test_reports_of_runs_are_made_again_and_compared(
    toy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b"):
        assert main(["run", toy, "--output", folder]) == 0
    Path("a/report.html").unlink()
    capsys.readouterr()
    assert main(["report", "a"]) == 0
    assert Path("a/report.html").exists()
    assert main(["report", "a", "b"]) == 0
    assert Path(capsys.readouterr().out.splitlines()[-1]).exists()


def test_a_recipe_that_leaves_no_run_makes_no_folder(
    toy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", toy.replace(":toy", ":silent")]) == 0
    assert capsys.readouterr().out == "hello\n"
    assert os.listdir() == []


def test_an_exit_code_passes_through_and_an_interrupt_is_130(toy: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", toy, "--fail", "exit"])
    assert caught.value.code == 7
    assert main(["run", toy, "--fail", "interrupt", "--overwrite"]) == 130


def test_an_unexpected_error_keeps_its_traceback(toy: str) -> None:
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["run", toy, "--fail", "crash"])


def test_a_warning_is_one_line(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as it is outside of tests
        assert main(["run", toy, "--fail", "warn"]) == 0
    assert "warning: all groups are equal: try more\n" in capsys.readouterr().err


def test_the_process_is_left_as_it_was(toy: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["run", toy]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_installed_recipe_shows_what_config_takes_back(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = find(name).load()
    assert main(["show", name]) == 0
    text = capsys.readouterr().out
    assert from_yaml(text, job) == job
    (tmp_path / "c.yaml").write_text(text)
    assert main(["show", name, "--config", str(tmp_path / "c.yaml")]) == 0
    assert capsys.readouterr().out == text
    for flag in flags(job):
        if flag.object_doc is None and flag.kind not in ("{KEY: VALUE}", "TEXT|none"):
            assert override(job, {flag.key: flag.value}) == job, flag
    assert main(["run", name, "--help"]) == 0
