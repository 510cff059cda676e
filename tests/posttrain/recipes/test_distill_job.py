"""Distillation in stages, through the command line, on small folders."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch.cli import main
from launch.config import resumable_keys
from posttrain.data.conversations import load_conversations
from posttrain.data.outputs import load_outputs
from posttrain.data.tasks import Arithmetic
from posttrain.models import load_model, save_model, tiny_model, train_tokenizer
from posttrain.recipes.checkpoints import distill
from posttrain.recipes.tiny import distill_mini

TEXTS = [f"{prompt.text}{prompt.answer}" for prompt in Arithmetic().train()]
RECIPE = "posttrain.recipes.checkpoints:distill"
RIGHT = "def anything(samples):\n    return [1.0] * len(samples)\n"
FLAGS = {
    "reward": "paid:anything",
    "problems": "4",
    "evaluation.sampling.max_tokens": "4",
    "outputs.steps": "4",
    "outputs.prompts_per_step": "20",
    "outputs.sampling.max_tokens": "24",
    "outputs.save_every": "1",
    "sft.steps": "4",
    "sft.row_length": "64",
    "sft.save_every": "2",
    "on_policy.steps": "4",
    "on_policy.prompts_per_step": "4",
    "on_policy.sampling.max_tokens": "6",
    "on_policy.save_every": "2",
    "on_policy.optimizer.learning_rate": "1e-3",
}
RELOAD = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
tokens = torch.tensor([tokenizer.encode("3+4=7")])
print(model(tokens, labels=tokens).loss.item())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("distillation")
    tokenizer = train_tokenizer(TEXTS, vocabulary=60)
    for name, layers in (("teacher", 2), ("student", 1)):
        lm = tiny_model(tokenizer, layers=layers, width=16, heads=2, seed=layers)
        save_model(lm.model, lm.tokenizer, place / name)
    other = tiny_model(train_tokenizer(TEXTS[:40], vocabulary=50), layers=1, width=16, heads=2)
    save_model(other.model, other.tokenizer, place / "other")
    (place / "paid.py").write_text(RIGHT)
    return place


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


def run(output: str, *more: str, **flags: str) -> int:
    chosen = {"teacher": "teacher", "model": "student", "task": "arithmetic"} | FLAGS | flags
    words = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    return main(["run", RECIPE, "--output", output, *words, *more])


def without(*stages: str) -> dict[str, str]:
    """Return FLAGS with these stages left out; flags inside of them would bring them back."""
    return {
        name: FLAGS[name] for name in FLAGS if name.split(".")[0] not in stages
    } | dict.fromkeys(stages, "none")


def start(output: str, flags: dict[str, str], *more: str) -> int:
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    return main(["run", RECIPE, "--output", output, *words, *more])


def records(path: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "speed/")
    return [{k: v for k, v in line.items() if not k.startswith(clock)} for line in lines]


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """Return a run of all stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        assert run("whole") == 0
    return folder / "whole"


def test_all_stages_leave_their_folders_and_a_student(whole: Path) -> None:
    names = [path.name for path in sorted((whole / "stages").iterdir())]
    assert names == ["1-outputs", "2-sft", "3-on-policy"]
    outputs = load_outputs(whole / "stages" / "1-outputs" / "outputs.jsonl")
    assert outputs
    assert {output.teacher for output in outputs} == {"teacher"}
    assert len({output.prompt.text for output in outputs}) == len(outputs)  # one of each prompt
    assert [record["step"] for record in records(whole)] == [1, 2, 3, 4]  # teacher and student
    items = (whole / "items.jsonl").read_text()
    for name in ("teacher", "student", "after SFT", "after on-policy"):
        assert f'"model": "{name}"' in items


def test_student_folder_reloads_in_a_new_process(whole: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(whole / "model")],
        capture_output=True,
        text=True,
        check=True,
    )
    lm = load_model(whole / "model")
    tokens = torch.tensor([lm.tokenizer.encode("3+4=7")])
    loss = lm.model(tokens, labels=tokens).loss.item()
    assert float(done.stdout) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("stopped_in", ["1-outputs", "2-sft", "3-on-policy"])
def test_resumed_run_equals_one_never_stopped(stopped_in: str, whole: Path) -> None:
    again = whole.with_name(f"stopped-{stopped_in}")
    shutil.copytree(whole, again)
    shutil.rmtree(again / "model")
    for stage in sorted((again / "stages").iterdir()):
        if stage.name > stopped_in:
            shutil.rmtree(stage)
    stage = again / "stages" / stopped_in
    shutil.rmtree(max((stage / "checkpoints").iterdir()))
    (stage / "outputs.jsonl").unlink(missing_ok=True)
    untouched = again / "stages" / "1-outputs" / "outputs.jsonl"
    made = untouched.stat().st_mtime_ns if untouched.exists() else None
    assert run(again.name, "--resume") == 0
    assert made is None or untouched.stat().st_mtime_ns == made
    for name in ("1-outputs", "2-sft", "3-on-policy"):
        assert records(again / "stages" / name) == records(whole / "stages" / name), name
    assert records(again) == records(whole)
    assert untouched.read_bytes() == (whole / "stages/1-outputs/outputs.jsonl").read_bytes()
    one, other = (load_model(x / "model").model.state_dict() for x in (whole, again))
    assert all(weight.equal(other[name]) for name, weight in one.items())


def test_stages_apart_equal_stages_together(whole: Path) -> None:
    both = {"teacher": "teacher", "model": "student", "task": "arithmetic"}
    assert start("alone", both | without("sft", "on_policy")) == 0
    file = Path("alone/stages/1-outputs/outputs.jsonl")
    assert file.read_bytes() == (whole / "stages/1-outputs/outputs.jsonl").read_bytes()
    assert not Path("alone/model").exists()  # nobody has learnt
    flags = both | without("outputs", "on_policy") | {"data": str(file)}
    assert start("learnt", flags) == 0
    assert records(Path("learnt/stages/2-sft")) == records(whole / "stages/2-sft")
    assert start("drawn", both | without("outputs", "sft")) == 0
    names = [path.name for path in Path("drawn/stages").iterdir()]
    assert names == ["3-on-policy"]


def test_outputs_of_chats_are_what_sft_reads(tmp_path: Path) -> None:
    rows = [{"question": f"{a}+{b}=", "answer": f"{a + b}"} for a in range(3) for b in range(9)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = {"teacher": "teacher", "model": "student"} | without("sft", "on_policy")
    flags |= {"task": str(tmp_path / "chats.jsonl"), "outputs.sampling.max_tokens": "40"}
    assert start("chats", flags) == 0
    file = Path("chats/stages/1-outputs/outputs.jsonl")
    chats = load_conversations(file)
    assert [chat[-1]["content"] for chat in chats] == [x.completion for x in load_outputs(file)]
    assert {chat[0]["role"] for chat in chats} <= {"system", "user"}


BOTH = {"teacher": "teacher", "model": "student", "task": "arithmetic"}
MAKE = "monro run distill --teacher teacher --model student --task TASK --sft none"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({**BOTH, "teacher": "./absent"}, "./absent does not exist"),
        ({"model": "student", "task": "arithmetic"}, "no teacher is given: add --teacher FOLDER"),
        ({"teacher": "teacher", "task": "arithmetic"}, "no model is given: add --model FOLDER"),
        ({"teacher": "teacher", "model": "student"}, "no task is given: add --task"),
        ({**BOTH, "model": "other"}, "the student other has a tokenizer of"),
        ({**BOTH, "on_policy.prompts_per_step": "99"}, "80 prompts to train on"),
        ({**BOTH, "outputs": "none"}, MAKE),
        (
            {**BOTH, "outputs": "none", "data": "absent.jsonl"},
            "there is no file absent.jsonl. Make",
        ),
        ({**BOTH, "outputs": "none", "data": "bad.jsonl"}, "bad.jsonl, line 2: there is no 'compl"),
        (
            {**BOTH, "outputs": "none", "data": "by-other.jsonl"},
            "the teacher other wrote it, not te",
        ),
        (
            {**BOTH, "outputs": "none", "data": "by-old.jsonl"},
            f"with another tokenizer. Make it with: {MAKE}",
        ),
        ({**BOTH, "data": "bad.jsonl"}, "add --outputs none to learn from the file"),
        ({**BOTH, "outputs": "none", "sft": "none", "data": "bad.jsonl"}, "sft is null"),
        ({**BOTH, "outputs": "none", "sft": "none", "on_policy": "none"}, "are all null"),
        ({**BOTH, "problems": "-1"}, "problems=-1"),
        ({**BOTH, "outputs.group_size": "0"}, "group_size=0"),
        ({**BOTH, "on_policy.objective": "posttrain.objectives:GRPO"}, "objective"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    flags: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"text": "1+1=", "completion": "2"}
    files = {
        "bad.jsonl": [row, {"text": "1+1="}],
        "by-other.jsonl": [row | {"teacher": "other"}],
        "by-old.jsonl": [row | {"teacher": "teacher", "tokenizer": "0123456789ab"}],
    }
    for name, rows in files.items():
        Path(name).write_text("".join(json.dumps(x) + "\n" for x in rows))
    assert start("refused", flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("refused").exists()


def test_a_teacher_that_is_never_right_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert start("wrong", BOTH | without("sft", "on_policy", "reward") | {"reward": "none"}) == 2
    assert "none of the teacher's completions was kept (320 sampled," in capsys.readouterr().err


def test_other_tokenizers_can_still_learn_from_texts() -> None:
    assert start("crossed", BOTH | without("on_policy") | {"model": "other"}) == 0
    assert (
        load_model("crossed/model").tokenizer.get_vocab()
        == load_model("other").tokenizer.get_vocab()
    )


def test_what_later_stages_build_on_does_not_change() -> None:
    for job in (distill(), distill_mini()):
        keys = resumable_keys(job)
        assert "on_policy.steps" in keys
        assert not any(key.startswith(("outputs", "sft", "teacher_training")) for key in keys)


def test_a_student_made_from_nothing_needs_texts(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--teacher_training", "none", "--output", "refused"]
    assert main(["run", "posttrain.recipes.tiny:distill_mini", *flags]) == 2
    assert "learns its tokenizer from the data of teacher_training" in capsys.readouterr().err
