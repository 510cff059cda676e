"""What ``make learn`` runs: recipes with their flags, and what they have to reach."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CASES", "Case", "Figures"]

Figures = dict[str, float]

EPISODES = 100
"""On which a policy is judged; training chose it on others."""
FRESH = 1_000_000
"""Added to the seed of a run for those episodes."""


def before_and_after(output: Path, seed: int) -> Figures:
    """Return the final figures of a run, with those before GRPO as ``before/...``."""
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    before, after = (json.loads(line) for line in lines)
    return after | {f"before/{name}": value for name, value in before.items()}


def judged(output: Path, seed: int) -> Figures:
    """Return what the policy that an agent's run has left earns, and the env steps it took."""
    from rl.evaluation import evaluate, load_policy

    last = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    policy = load_policy(output / "policy")
    returns = evaluate(policy, policy.env_id, episodes=EPISODES, seed=FRESH + seed)
    return {
        "return": float(returns.mean()),
        "lowest": float(returns.min()),
        "env_steps": json.loads(last)["env_steps"],
    }


def last_record(output: Path, seed: int) -> Figures:
    """Return the figures of a run's last step."""
    found: Figures = json.loads((output / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    return found


@dataclass(frozen=True)
class Case:
    """A recipe with its flags, and what it must reach."""

    name: str
    recipe: str
    flags: Sequence[str] = ()
    seeds: int = 3
    figures: Callable[[Path, int], Figures] = before_and_after
    """From the run folder and the seed."""
    shown: Sequence[str] = (
        "before/pass@1",
        "pass@1",
        "greedy",
        "length/mean",
        "share/reasoning",
        "seconds",
    )
    reaches: Callable[[Figures], bool] = lambda _: True
    """Of every seed."""
    reaches_on_average: Callable[[Figures], bool] = lambda _: True
    """Of the means over the seeds."""
    stated: str = ""


R1_GAINS = {
    "1-cold-start": ("english", "english/language"),
    "2-reasoning-rl": ("english", "english/language", "russian"),
    "4-sft": ("lists", "helpful", "harmless"),
    "5-all-scenarios-rl": ("helpful", "harmless"),
    "6-distilled-sft": ("english", "helpful", "harmless"),
}
"""What each stage of r1 is there for; of these each seed has to show a gain."""


def stages_of_r1(output: Path, seed: int) -> Figures:
    """Return the low ends of the gains that r1's stages are there for, and R1's own marks."""
    import torch

    from posttrain.recipes.exams import verdicts
    from posttrain.recipes.r1_summary import BEFORE, STUDENTS

    marks = {
        path.parent.name: {
            name: torch.tensor(values)
            for name, values in json.loads(path.read_text(encoding="utf-8"))["marks"].items()
        }
        for path in output.glob("stages/*/marks.json")
    }
    figures = {f"r1/{name}": float(x.mean()) for name, x in marks["5-all-scenarios-rl"].items()}
    compared = {stage: (BEFORE[stage], subjects) for stage, subjects in R1_GAINS.items()}
    compared[STUDENTS[1]] = (STUDENTS[0], ("english", "russian"))
    for stage, (before, subjects) in compared.items():
        for verdict in verdicts(stage, marks[before], marks[stage], subjects):
            figures[f"{stage}/{verdict.subject}"] = verdict.gain.low
    return figures


def agent(recipe: str, least: float, stated: str, *, each: float | None = None) -> Case:
    """Return the case of an agent whose mean over five seeds is to be ``least`` or more."""
    return Case(
        recipe,
        recipe,
        seeds=5,
        figures=judged,
        shown=("return", "lowest", "env_steps", "seconds"),
        reaches=lambda f: each is None or f["return"] >= each,
        reaches_on_average=lambda f: f["return"] >= least,
        stated=stated,
    )


def sequences(recipe: str) -> Case:
    """Return the case of a task on sequences, which is to be learnt to the last symbol."""
    return Case(
        recipe,
        recipe,
        figures=last_record,
        shown=("heldout/exact", "loss", "cpu_seconds", "seconds"),
        reaches=lambda f: f["heldout/exact"] == 1.0 and f["cpu_seconds"] <= 180,
        stated="every one of 512 held-out sequences right, <= 3 CPU minutes",
    )


CHARACTER_MIXERS = ("softmax", "gau", "flash-gau", "linear", "retention", "delta")


def characters(mixer: str) -> Case:
    """Return the case of a byte model; nothing is stated of it but that it learns."""
    return Case(
        f"char-lm: {mixer}",
        "char-lm",
        ("--mixer", mixer, "--steps", "250", "--heldout_every", "0"),
        figures=last_record,
        shown=("heldout/bits", "loss", "cpu_seconds", "seconds"),
        reaches=lambda f: f["heldout/bits"] < 4.0,
        stated="fewer than 4 bits per character of held-out files",
    )


def _r1_mini(f: Figures) -> bool:
    return (
        f["before/pass@1"] <= 0.40
        and f["pass@1"] >= 0.90
        and f["greedy"] >= 0.95
        and f["length/mean"] >= 1.8 * f["before/length/mean"]
        and f["share/reasoning"] >= 0.97
        and f["seconds"] <= 360
    )


def objective(name: str, *flags: str) -> Case:
    """Return the case of a policy objective, or of advantages, on the toy."""
    return Case(
        f"objective: {name}",
        "objective-toy",
        flags,
        shown=("before/pass@1", "pass@1", "greedy", "cpu_seconds", "seconds"),
        reaches=lambda f: (
            f["before/pass@1"] < 0.2 and f["pass@1"] > 0.9 and f["cpu_seconds"] <= 120
        ),
        stated="pass@1 < .20 -> > .90 on held-out words, <= 2 CPU minutes",
    )


def kind(group: str, name: str) -> tuple[str, str]:
    """Return the flag that chooses an objective or advantages."""
    return f"--{group}", f"posttrain.{MODULES[group]}:{name}"


MODULES = {"objective": "objectives", "advantages": "trainers"}
ONE_UPDATE = ("--updates_per_rollout", "1", "--steps", "240")
RANDOM = '{_type: "posttrain.recipes.controls:RandomReward"}'
CASES = (
    Case(
        "r1-mini",
        "r1-mini",
        reaches=_r1_mini,
        stated="pass@1 <= .40 -> >= .90, greedy >= .95, length x 1.8, >= 97% reason, <= 6 min",
    ),
    Case(
        "r1-zero-mini",
        "r1-zero-mini",
        reaches=lambda f: f["greedy"] >= 0.85 and f["pass@1"] >= 0.65 and f["seconds"] <= 600,
        stated="greedy >= .85, pass@1 >= .65, <= 10 min",
    ),
    Case(
        "r1",
        "r1",
        figures=stages_of_r1,
        shown=("r1/english", "r1/russian", "r1/lists", "r1/helpful", "r1/harmless", "cpu_seconds"),
        reaches=lambda f: (
            min(value for name, value in f.items() if name[0].isdigit()) > 0
            and f["cpu_seconds"] <= 900
        ),
        stated="every stage gains what it is for, distilled > reinforced student, <= 15 min",
    ),
    Case("control: reasons from the start", "r1-mini-control"),
    Case(
        "control: random rewards",
        "r1-mini",
        ("--reward", RANDOM),
        reaches=lambda f: f["pass@1"] - f["before/pass@1"] <= 0.05,
        stated="gains at most .05",
    ),
    Case("control: format reward alone", "r1-mini", ("--reward", "format")),
    Case(
        "control: cold start prolonged by the same compute",
        "r1-mini",
        ("--cold_start.steps", "2600", "--grpo.steps", "1", "--grpo.optimizer.learning_rate", "0"),
    ),
    objective("GRPO"),
    *(
        objective(name, *kind("objective", name))
        for name in ("DAPO", "CISPO", "SAPO", "GMPO", "LUSPO", "ClipCov", "KLCov")
    ),
    objective(
        "DrGRPO",
        "--objective",
        '{_type: "posttrain.objectives:DrGRPO", max_length: 8}',
        "--advantages.std",
        "null",
    ),
    objective("GSPO", *kind("objective", "GSPO"), *ONE_UPDATE),
    objective(
        "PolicyGradient",
        *kind("objective", "PolicyGradient"),
        *kind("advantages", "LeaveOneOut"),
        *ONE_UPDATE,
    ),
    objective("MaxRL", *kind("advantages", "MaxRL")),
    objective(
        "REINFORCE++",
        *kind("objective", "DAPO"),
        *("--objective.clip_high", "0.2"),
        *kind("advantages", "ReinforcePlusPlus"),
    ),
    agent("ppo-cartpole", 500, "500"),
    agent("ppo-acrobot", -82, ">= -82"),
    agent("ppo-lunarlander", 240, ">= 240 in 1M env steps"),
    agent("dqn-mountaincar", -110, ">= -110"),
    agent("sac-pendulum", -160, ">= -160 in 20k env steps"),
    agent("td3-pendulum", -float("inf"), "beside sac-pendulum"),
    *(sequences(f"transformer-{task}") for task in ("sort", "copy", "reverse")),
    *(characters(mixer) for mixer in CHARACTER_MIXERS),
)
