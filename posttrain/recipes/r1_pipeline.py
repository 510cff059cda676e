"""All stages of DeepSeek-R1 (Guo et al. 2025, arXiv:2501.12948, and its version in Nature).

Cold start, reasoning by reinforcement, rejection sampling, fine-tuning from the base,
reinforcement on all scenarios, distillation; each in a run folder of its own, and each model judged
on the same held-out problems.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from launch.config import resumable, to_yaml
from launch.errors import UsageError
from launch.folder import atomic_write
from launch.runtime import Runtime, RuntimeConfig
from launch.streams import key
from posttrain.architecture import keep_architecture
from posttrain.models import LanguageModel, load_model, save_model
from posttrain.objectives import SampledReverseKL
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.exams import Exam, Marks, examine
from posttrain.recipes.jobs import GIVE_TEMPLATE, WarmUp, check_template
from posttrain.recipes.r1_stages import (
    Distillation,
    Finetuning,
    Preferences,
    Reinforcement,
    Rejection,
    finetune,
    fresh,
    learn_preferences,
    reinforce,
    selected,
    with_helpfulness,
)
from posttrain.recipes.r1_summary import summarise
from posttrain.recipes.sources import FromScratch, ModelSource, Pretrained, parse_model
from posttrain.reward_models import RewardModel
from posttrain.trainers.distill import train_on_policy_distillation
from posttrain.trainers.policy import check_prompts
from posttrain.trainers.supervised import train_sft
from posttrain.vocabulary import check_alike, folder_vocabulary

__all__ = ["R1", "STAGES"]


@dataclass(frozen=True, kw_only=True, slots=True)
class R1:
    """The whole pipeline; ``stages/`` of the run folder holds each stage's own run."""

    leaves_run: ClassVar[bool] = True
    model: ModelSource = field(default_factory=FromScratch, metadata={"parse": parse_model})
    """The base model: made from nothing, or a folder."""
    student: ModelSource | None = field(default=None, metadata={"parse": parse_model})
    """A smaller base with the same tokenizer, to distil into; null leaves stage 6 out."""
    pretraining: WarmUp = field(metadata={"resumable": False})
    """What a base learns first that is made from nothing."""
    cold_start: Finetuning = field(metadata={"resumable": False})
    reasoning: Reinforcement = field(metadata={"resumable": False})
    rejection: Rejection = field(metadata={"resumable": False})
    finetuning: Finetuning = field(metadata={"resumable": False})
    """Its conversations are those besides reasoning, mixed with what stage 3 has kept."""
    preferences: Preferences = field(metadata={"resumable": False})
    scenarios: Reinforcement = field(metadata={"resumable": False})
    distillation: Distillation = field(metadata={"resumable": False})
    exams: Mapping[str, Exam]
    """Held-out problems by subject; every stage's model is judged on all of them."""
    evaluation: Evaluator = field(default_factory=Evaluator)
    problems: int = 256
    """Held-out problems of each subject at the most."""
    until: str = resumable("")
    """Stop after this stage, such as 3-rejection-sampling; empty runs all."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError for what is missing or does not fit."""
        if self.until and self.until not in STAGES:
            raise UsageError(f"until={self.until}: the stages are {', '.join(STAGES)}")
        for source in (self.model, self.student):
            if source is not None:
                source.check()
                check_template(source, GIVE_TEMPLATE)
        self._check_student()
        for data in (self.cold_start.data, self.finetuning.data, self.preferences.pairs):
            data.check()
        for stage in (self.reasoning, self.scenarios):
            needed = stage.training.prompts_per_step * stage.training.minibatches
            check_prompts(len(stage.task.train()), needed)
        for name, exam in self.exams.items():
            if not len(exam.task.heldout()):
                raise UsageError(f"exams.{name}: the task holds no problem out to judge by")

    def _check_student(self) -> None:
        """Compare the tokenizers of two folders before either model is loaded."""
        model, student = self.model, self.student
        if not isinstance(student, Pretrained):
            return
        if not isinstance(model, Pretrained):
            raise UsageError(
                f"--student {student.path} has a tokenizer of its own, but the model is made from "
                "nothing and so is its tokenizer: give --model FOLDER as well"
            )
        ours, theirs = (folder_vocabulary(source.path) for source in (student, model))
        if ours is not None and theirs is not None:
            sampled = isinstance(self.distillation.on_policy.objective, SampledReverseKL)
            check_alike(ours, theirs, logits=not sampled)

    def run(self, run: Runtime) -> None:
        """Go through the stages, judge each model, and write the summary."""
        run.restore({})  # a run of stages has no checkpoint of its own, only records to make again
        shelf = Shelf()
        marks: dict[str, Marks] = {}
        for name, work in STAGES.items():
            if name.startswith("6") and not self.distils:
                continue
            with run.stage(name) as stage:
                lm = work(self, shelf, stage)
                if lm is not None:
                    lm.model.to(run.device)
                    marks[name] = examine(self.exams, self.problems, self.evaluation, lm, stage)
                    shelf.put(name, lm, stage)
                    means = {subject: float(x.mean()) for subject, x in marks[name].items()}
                    if not name.startswith("6"):  # students are compared in tables of their own
                        run.log(len(marks), means)
                    run.print(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in means.items()))
            if name == self.until:
                break
        if not self.distils:
            run.print(NO_STUDENT)
        summarise(marks, run)

    @property
    def distils(self) -> bool:
        """Whether there is a student with the model's tokenizer."""
        foreign = isinstance(self.model, Pretrained) and isinstance(self.student, FromScratch)
        return self.student is not None and not foreign

    def texts(self) -> list[str]:
        """Return what a tokenizer made from nothing learns from."""
        return self.pretraining.data.texts(2_000)


NO_STUDENT = (
    "Stage 6 is left out: distillation needs a smaller base with the same tokenizer, "
    "--student FOLDER."
)


class Shelf:
    """What stages leave for later ones."""

    def __init__(self) -> None:
        self._models: dict[str, Callable[[], LanguageModel]] = {}
        self.rows: list[Mapping[str, Any]] = []
        """Conversations that rejection sampling has kept."""
        self.scorer: RewardModel | None = None

    def put(self, name: str, lm: LanguageModel, stage: Runtime) -> None:
        """Keep a stage's model: in its run folder, or without one in memory."""
        if stage.output is None:
            self._models[name] = partial(fresh, lm)
            return
        folder = stage.output / "model"
        stage.on_main(lambda: save_model(lm.model, lm.tokenizer, folder))
        dtype: Any = str(lm.model.dtype).removeprefix("torch.")
        self._models[name] = partial(load_model, folder, dtype=dtype)

    def take(self, name: str) -> LanguageModel:
        """Return a copy of a stage's model."""
        return self._models[name]()


def base(job: R1, shelf: Shelf, stage: Runtime) -> LanguageModel:
    """The base model, as it is given or made."""
    return made(job, job.model, stage)


def student_base(job: R1, shelf: Shelf, stage: Runtime) -> LanguageModel:
    """The smaller base model."""
    assert job.student is not None
    return made(job, job.student, stage)


def made(job: R1, source: ModelSource, stage: Runtime) -> LanguageModel:
    """Return a source's model; one made from nothing is trained on raw text first."""
    lm = source.load(job.texts(), job.seed)
    if isinstance(source, FromScratch):
        training = job.pretraining.training
        keep_config(job.pretraining, stage)
        count = training.steps * training.documents_per_step
        documents = job.pretraining.data.documents(lm, count, stage.seed)
        keep_architecture(lm.model, lm.tokenizer, stage)
        train_sft(training, lm.model, documents, stage)
    return lm


def cold_start(job: R1, shelf: Shelf, stage: Runtime) -> LanguageModel:
    """A few worked conversations, for the format and for readable thoughts."""
    lm, cfg = shelf.take("0-base"), job.cold_start
    keep_config(cfg, stage)
    finetune(cfg.training, lambda: (conversations(cfg, stage), {}), lm, stage)
    return lm


def reasoning(job: R1, shelf: Shelf, stage: Runtime) -> LanguageModel:
    """Reinforcement on problems whose answers can be checked."""
    lm, cfg = shelf.take("1-cold-start"), job.reasoning
    keep_config(cfg, stage)
    reinforce(cfg.training, cfg.task, cfg.reward, lm, stage)
    return lm


def rejection(job: R1, shelf: Shelf, stage: Runtime) -> None:
    """The model's own right answers, as data."""
    lm = shelf.take("2-reasoning-rl")
    keep_config(job.rejection, stage)
    shelf.rows = selected(job.rejection, lm, stage, name="2-reasoning-rl")


def finetuning(job: R1, shelf: Shelf, stage: Runtime) -> LanguageModel:
    """The base once more, on those answers and on conversations besides reasoning."""
    lm, cfg = shelf.take("0-base"), job.finetuning
    keep_config(cfg, stage)

    def mixed() -> tuple[list[Mapping[str, Any]], Mapping[str, int]]:
        others = conversations(cfg, stage)
        rows = [*shelf.rows, *others]
        random.Random(key(stage.seed, "mixed")).shuffle(rows)
        return rows, {"reasoning": len(shelf.rows), "others": len(others)}

    finetune(cfg.training, mixed, lm, stage)
    return lm


def reward_model(job: R1, shelf: Shelf, stage: Runtime) -> None:
    """A model of what is helpful, from pairs."""
    keep_config(job.preferences, stage)
    scorer = learn_preferences(job.preferences, shelf.take("4-sft"), stage)
    if stage.output is not None:
        folder = stage.output / "model"
        stage.on_main(lambda: save_model(scorer.model, scorer.tokenizer, folder))
    shelf.scorer = scorer


def scenarios(job: R1, shelf: Shelf, stage: Runtime) -> LanguageModel:
    """Reinforcement on everything: rules throughout, the reward model late."""
    lm, cfg = shelf.take("4-sft"), job.scenarios
    assert shelf.scorer is not None
    keep_config(cfg, stage)
    reward = with_helpfulness(cfg.reward, shelf.scorer, job.preferences, cfg.training.steps)
    reinforce(cfg.training, cfg.task, reward, lm, stage)
    return lm


def distilled_sft(job: R1, shelf: Shelf, stage: Runtime) -> LanguageModel:
    """The student on the answers of its teacher."""
    lm, cfg = shelf.take("6-student-base"), job.distillation
    keep_config(cfg.sft, stage)
    with stage.stage("outputs", to_yaml(cfg.outputs)) as outputs:
        teacher = shelf.take("5-all-scenarios-rl")
        rows = selected(cfg.outputs, teacher, outputs, name="5-all-scenarios-rl")
    finetune(cfg.sft, lambda: (rows, {}), lm, stage)
    return lm


def distilled_on_policy(job: R1, shelf: Shelf, stage: Runtime) -> LanguageModel:
    """The student on answers of its own, token by token beside its teacher."""
    lm, cfg = shelf.take("6-distilled-sft"), job.distillation.on_policy
    keep_config(cfg, stage)
    teacher, task = shelf.take("5-all-scenarios-rl"), job.scenarios.task
    train_on_policy_distillation(cfg, lm, teacher, task.train(), stage, reward=task.reward)
    return lm


def direct(job: R1, shelf: Shelf, stage: Runtime) -> LanguageModel:
    """The student's base by reinforcement alone, without a teacher, on its teacher's rewards."""
    lm, cfg = shelf.take("6-student-base"), job.distillation.direct
    assert shelf.scorer is not None
    keep_config(cfg, stage)
    reward = with_helpfulness(job.scenarios.reward, shelf.scorer, job.preferences, cfg.steps)
    reinforce(cfg, job.scenarios.task, reward, lm, stage)
    return lm


STAGES: Mapping[str, Callable[[R1, Shelf, Runtime], LanguageModel | None]] = {
    "0-base": base,
    "1-cold-start": cold_start,
    "2-reasoning-rl": reasoning,
    "3-rejection-sampling": rejection,
    "4-sft": finetuning,
    "5-reward-model": reward_model,
    "5-all-scenarios-rl": scenarios,
    "6-student-base": student_base,
    "6-distilled-sft": distilled_sft,
    "6-distilled-on-policy": distilled_on_policy,
    "6-direct-rl": direct,
}


def conversations(cfg: Finetuning, stage: Runtime) -> list[Mapping[str, Any]]:
    """Return the conversations of a stage as rows."""
    return [{"messages": list(chat)} for chat in cfg.data.chats(cfg.chats, stage.seed)]


def keep_config(config: Any, stage: Runtime) -> None:  # noqa: ANN401 any dataclass
    """Write the stage's part of the config into its folder."""
    if stage.output is not None:
        path, text = stage.output / "config.yaml", to_yaml(config)
        stage.on_main(lambda: atomic_write(path, text))
