"""The recipes for real checkpoints, through the command line, on a small folder."""

import csv
import io
import json
from pathlib import Path

import pytest

from launch.cli import main
from launch.config import resumable_keys
from launch.runtime import Runtime
from posttrain.data.tasks import Prompt
from posttrain.models import load_model, save_model, tiny_model, train_tokenizer
from posttrain.recipes.jobs import leave_model
from posttrain.recipes.sources import FromScratch, ModelSource, Pretrained
from posttrain.recipes.tiny import grpo_mini, r1_mini

CHAT = Prompt(messages=({"role": "user", "content": "1 + 1"},), answer="2")

QUESTIONS = [
    {"question": f"What is {a} plus {b}?", "answer": f"{a + b}"} for a in range(5) for b in range(5)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checkpoints")
    texts = [
        f"{row['question']} {row['answer']} {''.join(map(chr, range(32, 127)))}"
        for row in QUESTIONS
    ]
    lm = tiny_model(train_tokenizer(texts, vocabulary=160), layers=1, width=16, heads=2)
    save_model(lm.model, lm.tokenizer, place / "model")
    lines = [
        json.dumps(row | {"answer": f"By counting.\n#### {row['answer']}"}) for row in QUESTIONS
    ]
    (place / "gsm8k.jsonl").write_text("\n".join(lines))
    chats = [
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in QUESTIONS
    ]
    (place / "chat.jsonl").write_text("\n".join(map(json.dumps, chats)))
    return place


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def records(output: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(output, "metrics.jsonl").read_text().splitlines()]


def grpo(output: str, *more: str) -> int:
    flags = ["--steps", "2", "--prompts_per_step", "3", "--sampling.max_tokens", "5"]
    start = ["run", "grpo", "--model", "model", "--output", output]
    return main([*start, *flags, *(more or ("--task", "gsm8k.jsonl"))])


def test_grpo_trains_a_folder_and_leaves_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert grpo("grpo") == 0
    assert [record["step"] for record in records("grpo")] == [1, 2]
    load_model("grpo/model")
    assert capsys.readouterr().out.splitlines()[-1] == str(Path("grpo/report.html"))


def test_grpo_takes_the_users_own_reward(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "my_module.py").write_text(
        "def my_reward(samples):\n    return [len(s.tokens) / 5 for s in samples]\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    assert grpo("own", "--task", "gsm8k.jsonl", "--reward", "my_module:my_reward") == 0
    assert all(0 < record["reward"] <= 1 for record in records("own"))


def test_sft_trains_on_conversations() -> None:
    flags = ["--data", "chat.jsonl", "--steps", "3", "--row_length", "64"]
    assert main(["run", "sft", "--model", "model", "--output", "sft", *flags]) == 0
    assert len(records("sft")) == 3
    load_model("sft/model")


def test_eval_prints_figures_and_leaves_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    before = set(Path().iterdir())
    flags = ["--task", "gsm8k.jsonl", "--problems", "4", "--group_size", "2"]
    flags += ["--sampling.max_tokens", "5"]
    assert main(["run", "eval", "--model", "model", *flags]) == 0
    out = capsys.readouterr().out
    assert "pass@1" in out
    assert "maj@2" in out
    assert set(Path().iterdir()) == before


def test_chat_answers_each_line_and_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(Path().iterdir())
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 1 plus 1?\n\nWhat is 2 plus 2?\n"))
    assert main(["run", "chat", "--model", "model", "--sampling.max_tokens", "3"]) == 0
    assert capsys.readouterr().out
    assert set(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["run", "grpo"], "no model is given: add --model FOLDER"),
        (["run", "grpo", "--model", "model"], "no task is given"),
        (["run", "grpo", "--model", "absent", "--task", "gsm8k.jsonl"], "absent"),
        (["run", "grpo", "--model", "model", "--task", "absent.jsonl"], "absent.jsonl"),
        (["run", "grpo", "--model", "model", "--task", "bad.jsonl"], "bad.jsonl, line 2"),
        (["run", "grpo", "--model", "model", "--task", "few.jsonl"], "1 prompts"),
        (["run", "grpo", "--model", "empty", "--task", "gsm8k.jsonl"], "empty"),
        (["run", "grpo", "--model", "cut", "--task", "gsm8k.jsonl"], "model.safetensors"),
        (["run", "grpo", "--model", "model", "--task", "chain_sun"], "chain_sum"),
        (["run", "sft", "--model", "model"], "no data is given: add --data"),
        (["run", "sft", "--model", "model", "--data", "bad.jsonl"], "bad.jsonl"),
        (
            ["run", "eval", "--model", "model", "--task", "gsm8k.jsonl", "--problems", "0"],
            "problems=0",
        ),
        (
            ["run", "eval", "--model", "model", "--task", "gsm8k.jsonl", "--group_size", "0"],
            "group_size=0",
        ),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    flags: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.jsonl").write_text('{"question": "a", "answer": "1"}\n{"question": \n')
    Path("few.jsonl").write_text('{"question": "a", "answer": "1"}\n')
    Path("empty").mkdir(exist_ok=True)
    if not Path("cut").exists():
        load = load_model("model")
        save_model(load.model, load.tokenizer, "cut")
        weights = Path("cut/model.safetensors")
        weights.write_bytes(weights.read_bytes()[:-100])
    assert main([*flags, "--output", "refused"] if "chat" not in flags else flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("refused").exists()


def test_a_model_without_a_chat_template_is_refused_where_it_would_need_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lm = load_model("model")
    lm.tokenizer.chat_template = None
    save_model(lm.model, lm.tokenizer, "base")
    for flags, way_out in (
        (["grpo", "--task", "gsm8k.jsonl"], "add --task.form text, or give a chat model"),
        (["eval", "--task", "gsm8k.jsonl"], "add --task.form text, or give a chat model"),
        (["sft", "--data", "chat.jsonl"], "give a chat model"),
        (["chat"], "give a chat model"),
    ):
        assert main(["run", *flags, "--model", "base", "--output", "refused"]) == 2
        error = capsys.readouterr().err
        assert (
            f"base has no chat template, so a chat cannot be written as tokens: {way_out}" in error
        )
        assert not Path("refused").exists()
    flags = ["--task", "gsm8k.jsonl", "--task.form", "text", "--model", "base"]
    assert grpo("as-text", *flags) == 0
    assert "Talk to it" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "prompt", "said"),
    [
        (Pretrained(path="model"), None, "monro run chat --model run/model\n"),
        (Pretrained(path="model"), CHAT, "monro run chat --model run/model\n"),
        (FromScratch(), None, "monro run chat --model run/model\n"),
        (FromScratch(), CHAT, "monro run chat --model run/model --remember false\n"),
        (FromScratch(), Prompt(text="1 + 1 =", answer="2"), "It continues text"),
    ],
)
def test_how_to_talk_to_a_model_is_said_as_it_was_taught(
    source: ModelSource, prompt: Prompt | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Runtime(output="run", overwrite=True) as run:
        leave_model(load_model("model"), run, source, prompt)
    assert said in capsys.readouterr().out


def test_a_model_made_from_nothing_needs_texts_for_its_tokenizer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "grpo-mini", "--warm_up", "none", "--output", "refused"]) == 2
    assert "learns its tokenizer from the data of warm_up" in capsys.readouterr().err


def test_steps_of_a_stage_that_others_build_on_do_not_change() -> None:
    assert "steps" in resumable_keys(grpo_mini())
    assert not any(key.startswith("warm_up") for key in resumable_keys(grpo_mini()))
    assert "grpo.steps" in resumable_keys(r1_mini())
    assert not any(key.startswith("cold_start") for key in resumable_keys(r1_mini()))


def test_eval_says_when_nothing_is_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--task", "gsm8k.jsonl", "--problems", "2", "--sampling.max_tokens", "2"]
    flags += ["--model", "model", "--group_size", "1"]
    assert main(["run", "eval", *flags]) == 0
    assert "holds no problems out" in capsys.readouterr().out
    assert main(["run", "eval", *flags, "--task.heldout_share", "0.5"]) == 0
    assert "holds no problems out" not in capsys.readouterr().out


def table(output: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(output, "evaluation.csv").read_text().splitlines()))


def test_eval_of_several_models_and_tasks_leaves_one_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--models", "model,model", "--task", "gsm8k.jsonl", "--tasks", "gsm8k.jsonl"]
    flags += ["--problems", "3", "--group_size", "2", "--sampling.max_tokens", "4"]
    assert main(["run", "eval", *flags, "--output", "several"]) == 0
    rows = table("several")
    tasks = ["gsm8k.jsonl", "gsm8k.jsonl #2"]
    assert [(row["model"], row["task"]) for row in rows] == [
        (model, task) for model in ("model", "model #2") for task in tasks
    ]
    assert rows[0].items() - {("task", tasks[0])} == rows[1].items() - {("task", tasks[1])}
    assert {"problems", "avg@2", "avg@2 low", "pass@2", "greedy", "cut off", "unparseable"} <= set(
        rows[0]
    )
    markdown = Path("several/evaluation.md").read_text()
    assert markdown in capsys.readouterr().out
    assert "<td>model #2</td>" in Path("several/evaluation.html").read_text()
    assert "model #2/gsm8k.jsonl/avg" in records("several")[0]


def test_eval_of_one_model_leaves_the_same_table() -> None:
    flags = ["--model", "model", "--task", "gsm8k.jsonl", "--problems", "3", "--group_size", "2"]
    flags += ["--sampling.max_tokens", "4", "--output", "one"]
    assert main(["run", "eval", *flags]) == 0
    [row] = table("one")
    assert (row["model"], row["task"], row["problems"]) == ("model", "gsm8k.jsonl", "3")
    assert "pass@1" in records("one")[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "model,./absent", "--task", "gsm8k.jsonl"], "./absent does not exist"),
        (["--model", "model", "--tasks", "gsm8k.jsonl,nothing.jsonl"], "nothing.jsonl"),
        (["--model", "model", "--tasks", "gsm8k.jsonl,nothing:Empty"], "nothing:Empty has no prob"),
    ],
)
def test_eval_names_the_model_or_task_that_is_wrong(
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "nothing.py").write_text(
        "class Empty:\n    reward = None\n    def train(self): return []\n    heldout = train\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    assert main(["run", "eval", *flags]) == 2
    assert message in capsys.readouterr().err
