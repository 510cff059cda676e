"""Whether a program that a model wrote passes its hidden tests."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posttrain.rewards.base import Sample
from posttrain.rewards.sandbox import Execution, Limits, Outcome, Program, Sandbox

__all__ = ["CodeReward", "CodeTests", "extract_code"]

_OPENS = re.compile(r"\s*(?:<answer>\s*)?(`{3,})\s*([\w+.-]*)\s*")
_CLOSES = re.compile(r"\s*(`{3,})\s*(?:</answer>)?\s*")
_PYTHON = ("", "python", "python3", "py")


@dataclass(frozen=True, slots=True)
class CodeTests:
    """The hidden tests of a problem. As text they are a prompt's ``answer``.

    >>> tests = CodeTests(cases=(("1 2", "3"),), checks="assert add(1, 2) == 3")
    >>> tests.to_answer()
    '{"cases": [{"input": "1 2", "output": "3"}], "checks": "assert add(1, 2) == 3"}'
    >>> CodeTests.from_answer(tests.to_answer()) == tests
    True
    """

    cases: tuple[tuple[str, str], ...] = ()
    """(standard input, what must be printed). Each runs in a process of its own; spaces at the
    end of lines and blank lines at the end do not count."""
    checks: str = ""
    """Python that is run after the program, in its namespace, such as asserts. What stands under
    ``if __name__ == "__main__"`` is then left out."""

    def __post_init__(self) -> None:
        if not self.cases and not self.checks.strip():
            raise ValueError("a problem needs cases or checks: without tests every program passes")

    def to_answer(self) -> str:
        """Return the tests as JSON."""
        cases = [{"input": given, "output": wanted} for given, wanted in self.cases]
        return json.dumps({"cases": cases, "checks": self.checks})

    @classmethod
    def from_answer(cls, answer: str) -> CodeTests:
        """Read what ``to_answer`` wrote; either key may be missing.

        Raises:
            ValueError: It is something else.
        """
        form = '{"cases": [{"input": TEXT, "output": TEXT}, ...], "checks": PYTHON}'
        try:
            read = json.loads(answer)
            unknown = set(read) - {"cases", "checks"}
            if unknown:
                raise ValueError(f"unknown {sorted(unknown)}")
            cases = tuple((case["input"], case["output"]) for case in read.get("cases", []))
            checks = read.get("checks", "")
            if not all(isinstance(text, str) for text in (checks, *sum(cases, ()))):
                raise TypeError("inputs, outputs and checks are text")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{answer[:80]!r} are no tests ({reason}): expected {form}") from error
        return cls(cases, checks)


@dataclass
class CodeReward:
    """1 where the program passes all tests, else 0.

    The program is the last closed block of Python in the completion, after ``</think>``; the tests
    are the sample's ``answer``, as ``CodeTests`` writes it. Programs run in a ``Sandbox``: see
    there for what they can and cannot do.

    A case is judged from outside by what was printed. Checks run in the program's own process,
    so a program that sets out to cheat them can (by objects that equal everything, for one);
    where that matters, give cases.
    """

    limits: Limits = field(default_factory=Limits)
    """Of each run of a program; one that hangs is not run on its other cases."""
    imports: tuple[str, ...] = ()
    """Modules to import before any program runs, such as ``numpy``."""
    as_root_without_namespaces: bool = False
    """Run untrusted programs although we are root and the kernel refuses namespaces."""
    timeouts: int = field(default=0, init=False, compare=False, repr=False)
    """Samples that hit a time limit so far."""

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 of zeros and ones; equal programs are run once.

        Raises:
            ValueError: A sample's answer holds no tests.
            UsageError: We are root, the kernel refuses namespaces, and nobody insisted.
        """
        rows: list[tuple[str, str] | None] = []
        for sample in samples:
            source = extract_code(sample.completion)
            rows.append(None if source is None else (source, sample.answer))
        tests = {answer: _tests(row, answer) for row, answer in _answers(samples)}
        jobs: dict[tuple[str, str], bool | None] = {job: None for job in rows if job is not None}
        late = self._judge(jobs, tests)
        self.timeouts += sum(row in late for row in rows)
        return torch.tensor(
            [float(row is not None and jobs[row] is True) for row in rows], dtype=torch.float32
        )

    def _judge(
        self, jobs: dict[tuple[str, str], bool | None], tests: dict[str, CodeTests]
    ) -> set[tuple[str, str]]:
        """Say in ``jobs`` whether each program passes; return those that ran out of time.

        All programs take their first test, then those that passed it their second, and so on.
        """
        sandbox = _sandbox(self.limits, self.imports, self.as_root_without_namespaces)
        late: set[tuple[str, str]] = set()
        turn, left = 0, list(jobs)
        while left:
            programs = {job: _program(job[0], tests[job[1]], turn) for job in left}
            for job in [job for job, program in programs.items() if program is None]:
                jobs[job] = True
                del programs[job]
            done = sandbox.run([program for program in programs.values() if program is not None])
            left = []
            for job, execution in zip(programs, done, strict=True):
                if _passes(execution, tests[job[1]], turn):
                    left.append(job)
                else:
                    jobs[job] = False
                if execution.outcome is Outcome.TIMEOUT:
                    late.add(job)
            turn += 1
        return late


def extract_code(text: str) -> str | None:
    r"""Return the last closed block of Python after ``</think>``, in linear time.

    A block of another language does not count; a block without a language does. Without any block
    it is what stands in the last ``<answer>`` element; None if there is none either.

    >>> extract_code("<think>hm</think>Here:\n```python\nprint(1)\n```\nDone.")
    'print(1)\n'
    >>> extract_code("<answer>print(1)</answer>"), extract_code("```python\nprint(1)")
    ('print(1)', None)
    """
    text = text.rpartition("</think>")[2]
    found: str | None = None
    fence, language, block = "", "", list[str]()
    for line in text.splitlines(keepends=True):
        if not fence and (opens := _OPENS.fullmatch(line)):
            fence, language, block = opens[1], opens[2].lower(), []
        elif fence and (closes := _CLOSES.fullmatch(line)) and len(closes[1]) >= len(fence):
            if language in _PYTHON:
                found = "".join(block)
            fence = ""
        elif fence:
            block.append(line)
    if found is None and not fence and "</answer>" in text:
        before = text[: text.rfind("</answer>")]
        _, opened, answer = before.rpartition("<answer>")
        return answer if opened and "```" not in answer else None
    return found


_SANDBOXES: dict[tuple[Limits, tuple[str, ...], bool], Sandbox] = {}
_MAKING = threading.Lock()


def _sandbox(limits: Limits, imports: Sequence[str], insist: bool) -> Sandbox:
    """Return this process's sandbox of a kind; it starts with the first program."""
    key = (limits, tuple(imports), insist)
    with _MAKING:
        if key not in _SANDBOXES:
            _SANDBOXES[key] = Sandbox(limits, imports=imports, as_root_without_namespaces=insist)
        return _SANDBOXES[key]


def _answers(samples: Sequence[Sample]) -> list[tuple[int, str]]:
    """Return each different answer with the first row that has it."""
    first: dict[str, int] = {}
    for row, sample in enumerate(samples):
        first.setdefault(sample.answer, row)
    return [(row, answer) for answer, row in first.items()]


def _tests(row: int, answer: str) -> CodeTests:
    try:
        return CodeTests.from_answer(answer)
    except ValueError as error:
        raise ValueError(f"sample {row}: {error}") from error


def _program(source: str, tests: CodeTests, turn: int) -> Program | None:
    """Return what a program runs on in its turn: the checks, then case after case."""
    if tests.checks.strip():
        if turn == 0:
            return Program(source=source, checks=tests.checks)
        turn -= 1
    return Program(source=source, stdin=tests.cases[turn][0]) if turn < len(tests.cases) else None


def _passes(execution: Execution, tests: CodeTests, turn: int) -> bool:
    if execution.outcome is not Outcome.ENDED:
        return False
    if tests.checks.strip():
        if turn == 0:
            return True
        turn -= 1
    return _shown(execution.output) == _shown(tests.cases[turn][1])


def _shown(text: str) -> list[str]:
    """Return lines without what cannot be seen at their ends."""
    return [line.rstrip() for line in text.rstrip().split("\n")]
