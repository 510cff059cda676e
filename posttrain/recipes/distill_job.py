"""Distillation in stages: a teacher's outputs, SFT on them, and on-policy distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from launch.config import resumable, to_yaml
from launch.errors import UsageError
from launch.runtime import Runtime, RuntimeConfig
from posttrain.architecture import keep_architecture
from posttrain.data.outputs import Output, load_outputs, output_documents, write_outputs
from posttrain.data.tasks import Task, parse_task
from posttrain.eval import Interval
from posttrain.eval.report import before_and_after
from posttrain.models import LanguageModel
from posttrain.objectives import SampledReverseKL
from posttrain.recipes.evaluation import show_summary
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.jobs import WarmUp, check_form, given, leave_model
from posttrain.recipes.sources import FromScratch, ModelSource, Pretrained, parse_model
from posttrain.rewards import Reward, parse_reward
from posttrain.trainers.distill import DistillConfig, train_on_policy_distillation
from posttrain.trainers.outputs import OutputsConfig, teacher_outputs
from posttrain.trainers.policy import check_prompts
from posttrain.trainers.supervised import SFTConfig, train_sft
from posttrain.vocabulary import Vocabulary, check_alike, folder_vocabulary, model_vocabulary

__all__ = ["DistillJob"]

Summary = Mapping[str, float | Interval]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillJob:
    """A student learns from a teacher (DeepSeek-R1, arXiv:2501.12948, section 2.4, and GKD).

    Stages: ``1-outputs`` samples the teacher and keeps what is right, ``2-sft`` trains the student
    on it, ``3-on-policy`` draws the student's distributions to the teacher's on the student's own
    completions. Null leaves a stage out.
    """

    leaves_run: ClassVar[bool] = True
    teacher: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    model: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    """The student."""
    task: Task | None = field(default=None, metadata={"parse": parse_task})
    """A JSONL file of questions and answers, a reasoning-gym name, a hub id or module:Class."""
    reward: Reward | None = field(default=None, metadata={"parse": parse_reward})
    """Says what is right; null takes the task's own."""
    data: str = ""
    """Outputs that another run has left, for SFT; then ``outputs`` is null."""
    outputs: OutputsConfig | None = field(
        default_factory=OutputsConfig, metadata={"resumable": False}
    )
    sft: SFTConfig | None = field(default_factory=SFTConfig, metadata={"resumable": False})
    on_policy: DistillConfig | None = field(default_factory=DistillConfig)
    teacher_training: WarmUp | None = field(default=None, metadata={"resumable": False})
    """Trains the teacher first, in ``0-teacher``, for one that is made from nothing."""
    evaluation: Evaluator = field(default_factory=lambda: Evaluator(group_size=1))
    problems: int = 128
    """Held-out problems that teacher and student are judged on, before and after each stage; 0
    judges none."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError for what is missing, broken, or does not fit together."""
        if self.problems < 0:
            raise UsageError(f"problems={self.problems}: give 0 (judge none) or a number")
        if self.outputs is None and self.sft is None and self.on_policy is None:
            raise UsageError("outputs, sft and on_policy are all null: keep one of the stages")
        if self._needs_teacher:
            if self.teacher == Pretrained():
                raise UsageError("no teacher is given: add --teacher FOLDER (or a hub id)")
            self.teacher.check()
        self.model.check()
        made = [x for x in (self.teacher, self.model) if isinstance(x, FromScratch)]
        if made and self.teacher_training is None:
            raise UsageError(
                "a model made from nothing learns its tokenizer from the data of teacher_training, "
                "which is null: keep it, or give --teacher FOLDER and --model FOLDER"
            )
        self._check_task()
        self._check_vocabularies()
        self._check_data()

    @property
    def _needs_teacher(self) -> bool:
        return self.outputs is not None or self.on_policy is not None

    def _check_task(self) -> None:
        task = given(self.task)
        prompts = task.train()
        for stage in (self.outputs, self.on_policy):
            check_prompts(len(prompts), 1 if stage is None else stage.prompts_per_step)
        for model in (self.teacher, self.model) if self._needs_teacher else (self.model,):
            check_form(model, task, prompts[0])

    def _check_vocabularies(self) -> None:
        """Compare the tokenizers of two folders, before either model is loaded."""
        if self.on_policy is None:
            return
        student, teacher = _vocabulary(self.model), _vocabulary(self.teacher)
        if student is not None and teacher is not None:
            sampled = isinstance(self.on_policy.objective, SampledReverseKL)
            check_alike(student, teacher, logits=not sampled)

    def _check_data(self) -> None:
        if self.data and self.outputs is not None:
            raise UsageError(
                f"data={self.data}, but the stage outputs makes its own: add --outputs none to "
                "learn from the file, or leave --data out"
            )
        if self.data and self.sft is None:
            raise UsageError(f"data={self.data}, but sft is null, and no other stage reads it")
        if self.outputs is not None or self.sft is None:
            return
        if not self.data:
            raise UsageError(
                "sft learns from a teacher's outputs, but the stage outputs is null and no --data "
                f"FILE is given. {self._how_to_make()}"
            )
        if not Path(self.data).is_file():
            raise UsageError(f"there is no file {self.data}. {self._how_to_make()}")
        self._check_origin(load_outputs(self.data))

    def _check_origin(self, outputs: list[Output]) -> None:
        """Refuse outputs of another teacher than the one that is given, or of another tokenizer."""
        teacher = _vocabulary(self.teacher)
        if not isinstance(self.teacher, Pretrained) or not self.teacher.path:
            return
        for number, output in enumerate(outputs, start=1):
            said = f"{self.data}, output {number}: the teacher {output.teacher} wrote it"
            if output.teacher not in ("", self.teacher.path):
                raise UsageError(f"{said}, not {self.teacher.path}. {self._how_to_make()}")
            if teacher and output.tokenizer not in ("", teacher.fingerprint):
                raise UsageError(f"{said} with another tokenizer. {self._how_to_make()}")

    def _how_to_make(self) -> str:
        teacher, model = (
            source.path if isinstance(source, Pretrained) and source.path else "FOLDER"
            for source in (self.teacher, self.model)
        )
        return (
            f"Make it with: monro run distill --teacher {teacher} --model {model} --task TASK "
            "--sft none --on_policy none --output runs/outputs, and give --data "
            "runs/outputs/stages/1-outputs/outputs.jsonl"
        )

    def run(self, run: Runtime) -> None:
        """Run the stages, judge before and after each, and leave the student."""
        run.restore({})  # a run of stages has no checkpoint of its own, only records to make again
        task = given(self.task)
        reward = self.reward or task.reward
        warm_up = self.teacher_training
        texts = warm_up.data.texts(2_000) if warm_up is not None else []
        student = self.model.load(texts, self.seed)
        student.model.to(run.device)
        judged = _Judged(self, run)
        teacher = None
        if self._needs_teacher:
            teacher = self.teacher.load(texts, self.seed)
            teacher.model.to(run.device)
            if self.on_policy is not None:
                sampled = isinstance(self.on_policy.objective, SampledReverseKL)
                ours, theirs = model_vocabulary(student), model_vocabulary(teacher)
                check_alike(ours, theirs, logits=not sampled)
            if warm_up is not None:
                warm_up.run(teacher, run, self.seed, name="0-teacher")
            judged.judge("teacher", teacher)
        outputs = self._outputs(teacher, task, reward, run)
        if self.sft is None and self.on_policy is None:
            return  # the student has learnt nothing
        judged.judge("student", student)
        if self.sft is not None:
            with run.stage("2-sft", to_yaml(self.sft)) as stage:
                keep_architecture(student.model, student.tokenizer, stage)
                train_sft(self.sft, student.model, output_documents(student, outputs), stage)
            judged.judge("after SFT", student)
        if self.on_policy is not None:
            assert teacher is not None
            with run.stage("3-on-policy", to_yaml(self.on_policy)) as stage:
                train_on_policy_distillation(
                    self.on_policy, student, teacher, task.train(), stage, reward=reward
                )
            judged.judge("after on-policy", student)
        leave_model(student, run, self.model, task.train()[0])

    def _outputs(
        self, teacher: LanguageModel | None, task: Task, reward: Reward, run: Runtime
    ) -> list[Output]:
        """Return what SFT learns from; a file that is there was finished, and is read."""
        if self.outputs is None:
            return load_outputs(self.data) if self.data else []
        assert teacher is not None
        with run.stage("1-outputs", to_yaml(self.outputs)) as stage:
            file = None if stage.output is None else stage.output / "outputs.jsonl"
            if run.resume and file is not None and file.is_file():
                return load_outputs(file)
            name = self.teacher.path if isinstance(self.teacher, Pretrained) else ""
            outputs = teacher_outputs(self.outputs, teacher, task.train(), reward, stage, name=name)
            if file is not None:
                run.on_main(lambda: write_outputs(file, outputs))
            return outputs


class _Judged:
    """Judges models on the held-out problems, and keeps a table of all of them."""

    def __init__(self, job: DistillJob, run: Runtime) -> None:
        self.job, self.run = job, run
        task = given(job.task)
        self.reward, self.prompts = task.reward, task.heldout()[: job.problems]
        self.summaries: dict[str, Summary] = {}
        if job.problems and not len(self.prompts):
            run.print("The task holds no problems out, so nothing is judged.")

    def judge(self, name: str, lm: LanguageModel) -> None:
        """Log and show how ``lm`` does."""
        if not len(self.prompts):
            return
        found = self.job.evaluation.judge(lm, self.prompts, self.reward, self.run)
        summary = found.summary(k=self.job.evaluation.group_size)
        self.summaries[name] = summary
        figures = {key: float(value) for key, value in summary.items()}
        self.run.log(len(self.summaries), figures)
        title = f"{len(self.prompts)} held-out problems"
        show_summary(summary, f"{name}: {title}", self.run)
        self.run.table(title, before_and_after(self.summaries))


def _vocabulary(source: ModelSource) -> Vocabulary | None:
    return folder_vocabulary(source.path) if isinstance(source, Pretrained) else None
