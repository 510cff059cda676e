"""The recipes for real checkpoints, through the command line, on a small folder."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    pairs = [
        {"prompt": row["question"], "chosen": row["answer"], "rejected": f"{row['answer']} plus"}
        for row in QUESTIONS
    ]
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
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


def test_grpo_looks_at_held_out_problems_with_sampling_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = "--task gsm8k.jsonl --task.heldout_share 0.3 --steps 3 --prompts_per_step 2"
    flags += " --group_size 2 --sampling.max_tokens 4 --probe_every 2 --problems 3"
    flags += " --evaluation.sampling.max_tokens 6 --reward posttrain.rewards:FormatReward"
    assert main(["run", "grpo", "--model", "model", *flags.split()]) == 0
    lines = Path("runs/grpo/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert ["heldout/accuracy" in record for record in records] == [True, True, True]  # 1, 2, last
    assert all(4 < record["heldout/length"] <= 6 for record in records)
    refused = ["--task", "gsm8k.jsonl", "--probe_every", "2", "--output", "other"]
    assert main(["run", "grpo", "--model", "model", *refused]) == 2
    assert "the task holds no problems out" in capsys.readouterr().err


def test_sft_counts_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", "chat.jsonl", "--epochs", "1.5", "--documents_per_step", "10"]
    assert main(["run", "sft", "--model", "model", *flags, "--row_length", "64"]) == 0
    lines = Path("runs/sft/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4  # 25 chats, 37.5 documents in steps of 10
    assert main(["run", "sft", "--model", "model", *flags, "--epochs", "0", "--output", "x"]) == 2
    assert "epochs=0.0: give a positive number" in capsys.readouterr().err


def test_sft_trains_on_conversations() -> None:
    flags = ["--data", "chat.jsonl", "--steps", "3", "--row_length", "64"]
    assert main(["run", "sft", "--model", "model", "--output", "sft", *flags]) == 0
    assert len(records("sft")) == 3
    load_model("sft/model")


DPO = "posttrain.recipes.checkpoints:dpo"
PAIRS = ("--model", "model", "--data", "pairs.jsonl")
RELOAD = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
tokens = torch.tensor([tokenizer.encode("What is 1 plus 1? 2")])
print(model(tokens, labels=tokens).loss.item())
"""


@pytest.mark.parametrize("objective", ["DPO", "IPO", "SimPO", "ORPO", "KTO"])
def test_dpo_trains_on_pairs(objective: str) -> None:
    flags = ["--data", "pairs.jsonl", "--steps", "3", "--pairs_per_step", "4"]
    flags += ["--objective", f"posttrain.objectives:{objective}", "--objective.beta", "0.2"]
    flags += ["--data.heldout_share", "0.2", "--heldout_every", "2"]
    assert main(["run", DPO, "--model", "model", "--output", objective, *flags]) == 0
    found = records(objective)
    assert [record["step"] for record in found if "heldout/ranking" in record] == [1, 2, 3]
    assert f"{objective}\n  beta: 0.2" in Path(objective, "config.yaml").read_text()
    load_model(f"{objective}/model")


def test_what_dpo_leaves_reloads_in_a_new_process() -> None:
    flags = ["--data", "pairs.jsonl", "--steps", "2", "--optimizer.learning_rate", "1e-2"]
    assert main(["run", DPO, "--model", "model", "--output", "reload", *flags]) == 0
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, "reload/model"], capture_output=True, text=True, check=True
    )
    losses = []
    for folder in ("reload/model", "model"):
        lm = load_model(folder)
        tokens = torch.tensor([lm.tokenizer.encode("What is 1 plus 1? 2")])
        losses.append(lm.model(tokens, labels=tokens).loss.item())
    assert float(done.stdout) == pytest.approx(losses[0], rel=1e-6)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


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
        (["run", DPO, "--model", "model"], "no data is given: add --data"),
        (["run", DPO, "--model", "model", "--data", "absent.jsonl"], "absent.jsonl"),
        (
            ["run", DPO, "--model", "model", "--data", "unrejected.jsonl"],
            "unrejected.jsonl, line 2: there is no 'rejected'",
        ),
        (
            ["run", DPO, "--model", "model", "--data", "unchosen.jsonl"],
            "unchosen.jsonl, line 1: chosen is empty",
        ),
        (
            ["run", DPO, *PAIRS, "--row_length", "3"],
            "row_length=3",
        ),
        (
            ["run", DPO, *PAIRS, "--objective", "posttrain.objectives:GRPO"],
            "objective: GRPO has no rewards, expected a PreferenceObjective",
        ),
        (
            ["run", DPO, *PAIRS, "--objective.beta", "0"],
            "beta=0",
        ),
        (
            ["run", DPO, *PAIRS, "--data.heldout_share", "1"],
            "heldout_share=1",
        ),
        (
            [
                "run",
                DPO,
                *PAIRS,
                "--objective",
                "posttrain.objectives:KTO",
                "--pairs_per_step",
                "1",
            ],
            "pairs_per_step=1",
        ),
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
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    unrejected = {"prompt": "a", "chosen": "b"}
    Path("unrejected.jsonl").write_text(f"{json.dumps(pair)}\n{json.dumps(unrejected)}\n")
    Path("unchosen.jsonl").write_text(json.dumps(pair | {"chosen": ""}))
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
        ([DPO, "--data", "pairs.jsonl"], "give a chat model"),
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
