"""The plan of the house: what may import what, and how large a thing may grow.

Each rule reads one module with ``ast`` and yields what breaks it. Beside each rule stands a small
source that breaks it, so that no rule passes because it sees nothing.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("launch", "rl", "posttrain", "generative")

# What a module may import of the house; the longest prefix of its name decides.
ARROWS = {
    "launch": ("launch",),
    "rl": ("rl", "launch"),
    "rl.estimators": ("rl.estimators",),
    "posttrain": ("posttrain", "launch", "rl.estimators", "generative.attention"),
    "posttrain.objectives": ("posttrain.objectives", "rl.estimators"),
    "generative": ("generative", "launch"),
    "generative.attention": ("generative.attention",),
    "generative.layers": ("generative.layers",),
}
# Mathematics needs nothing but torch; kernels live in modules of their own, which need triton and
# are imported inside functions alone.
TORCH_ALONE = ("rl.estimators", "posttrain.objectives", "generative.attention", "generative.layers")
# What steps environments; every other module takes what these return.
RL_ENVIRONMENTS = (
    "rl.classic_control",
    "rl.envs",
    "rl.evaluation",
    "rl.gymnasium_vector",
    "rl.linear_tasks",
    "rl.listed_envs",
    "rl.registered_envs",
    "rl.spaces",
    "rl.tabular_env",
    "rl.tabular_tasks",
    "rl.tabular_worlds",
)
# Packages that take long to load, and the modules whose work they are.
HEAVY = {
    "accelerate": ("launch.backends",),
    "datasets": (),
    "deepspeed": (),
    "gymnasium": RL_ENVIRONMENTS,
    "math_verify": (),
    "matplotlib": ("launch.curves", "launch.ranges"),
    "numba": (
        "posttrain.rollout.compiled_attention",
        "posttrain.rollout.compiled_kernels",
        "posttrain.rollout.vectors",
        "rl.classic_kernels",
        "rl.fused_kernels",
        "rl.sum_tree",
        "rl.sweeps",
        "rl.tabular_fast",
        "rl.tabular_updates",
    ),
    "reasoning_gym": (),
    "scipy": (),
    "sklearn": (),
    "transformers": (),
    "triton": (
        "generative.attention.kernels._triton_attention",
        "generative.attention.kernels._triton_attention_tiles",
        "generative.attention.kernels._triton_cross_entropy",
        "generative.attention.kernels._triton_linear",
        "generative.attention.kernels._triton_mixing",
    ),
    "trl": (),
    "vllm": (),
}
# The only modules that may import a package at all, also inside functions.
ONLY_IN = {"deepspeed": ("launch.zero_engine",)}
MAX_LINES = 400
MAX_FUNCTION_LINES = 60  # without the docstring
LONGER: dict[str, str] = {  # module -> the reason why it is one file
    "launch.runtime": "the one object that every loop talks to; its methods are a few lines each",
}
NO_NAMES = ("utils", "util", "helpers", "common", "misc", "manager")


@dataclass(frozen=True)
class Import:
    """One imported module: where, and whether at import time, in a function or for types alone."""

    target: str
    line: int
    lazy: bool
    typing: bool


@dataclass(frozen=True)
class Module:
    """A source file of a package, or a small source made up to break a rule."""

    name: str
    source: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def imports(self) -> list[Import]:
        return list(_imports(self.tree.body, lazy=False, typing=False))


def _imports(nodes: Sequence[ast.AST], *, lazy: bool, typing: bool) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy, typing)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                path = ROOT / full.replace(".", "/")
                is_module = path.with_suffix(".py").exists() or path.is_dir()
                yield Import(full if is_module else base, node.lineno, lazy, typing)
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for name in ("body", "orelse", "handlers", "finalbody", "cases"):
                yield from _imports(
                    getattr(node, name, []),
                    lazy=lazy or function,
                    typing=typing or (for_types and name == "body"),
                )


def _inside(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _is_public(module: Module) -> bool:
    return not module.name.rsplit(".", 1)[-1].startswith("_")


# --- rules ------------------------------------------------------------------------------------


def arrows(module: Module) -> Iterator[str]:
    """Imports within the house go one way; for types alone, one may look anywhere in a package."""
    home = max((p for p in ARROWS if _inside(module.name, (p,))), key=len)
    allowed = ARROWS[home]
    for found in module.imports:
        if found.target.startswith("."):
            yield f"line {found.line}: relative import, write the full name"
        package = found.target.split(".")[0]
        if package not in PACKAGES or _inside(found.target, allowed):
            continue
        if found.typing and _inside(found.target, ARROWS[home.split(".")[0]]):
            continue
        yield f"line {found.line}: {home} imports {found.target}"


def torch_alone(module: Module) -> Iterator[str]:
    """Estimators, objectives, attention and layers need torch and the standard library alone."""
    if not _inside(module.name, TORCH_ALONE):
        return
    for found in module.imports:
        package = found.target.split(".")[0]
        if package in sys.stdlib_module_names or package in (*PACKAGES, "torch"):
            continue
        kernels = module.name in HEAVY["triton"]
        if package == "triton" and (
            kernels or (found.lazy and _inside(module.name, ("generative",)))
        ):
            continue
        yield f"line {found.line}: imports {found.target}"


def no_io(module: Module) -> Iterator[str]:
    """Estimators and objectives read no file and print nothing."""
    if not _inside(module.name, ("rl.estimators", "posttrain.objectives")):
        return
    for found in module.imports:
        if found.target.split(".")[0] in ("io", "logging", "os", "pathlib", "subprocess", "sys"):
            yield f"line {found.line}: imports {found.target}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("open", "print"):
            yield f"line {node.lineno}: calls {ast.unparse(node.func)}"


def heavy_only_where_needed(module: Module) -> Iterator[str]:
    """Nothing heavy is loaded by importing a module that does not live by it."""
    for found in module.imports:
        package = found.target.split(".")[0]
        loads = not found.lazy and not found.typing
        if package in ONLY_IN and not _inside(module.name, ONLY_IN[package]):
            yield f"line {found.line}: {package} belongs to {ONLY_IN[package]}"
        elif package in HEAVY and loads and not _inside(module.name, HEAVY[package]):
            yield f"line {found.line}: import {package} inside the function that needs it"
        elif found.target in HEAVY["triton"] and loads and module.name not in HEAVY["triton"]:
            yield f"line {found.line}: import {found.target} inside the function that runs it"


def empty_package(module: Module) -> Iterator[str]:
    """The ``__init__`` of rl, posttrain and generative is its docstring."""
    if module.is_package and module.name in ("rl", "posttrain", "generative"):
        for node in module.tree.body[1:]:
            yield f"line {node.lineno}: {ast.unparse(node)[:60]}"


def shifts_only_in_log_probs(module: Module) -> Iterator[str]:
    """Logits are shifted against tokens in one place; elsewhere an off-by-one would hide."""
    if not module.name.startswith("posttrain.") or module.name == "posttrain.log_probs":
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("cross_entropy"):
            yield f"line {node.lineno}: cross_entropy, take token_log_probs"
        if not isinstance(node, ast.Subscript):
            continue
        what, where = ast.unparse(node.value).lower(), ast.unparse(node.slice)
        if ("logits" in what or "hidden" in what) and ":-1" in where.replace(" ", ""):
            yield f"line {node.lineno}: {ast.unparse(node)} shifts"


def lengths(module: Module) -> Iterator[str]:
    """A file and a function can be read in one sitting."""
    if module.name in LONGER:
        return
    lines = module.source.count("\n")
    if lines > MAX_LINES:
        yield f"{lines} lines, more than {MAX_LINES}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            size = node.end_lineno - first.lineno + 1
            if size > MAX_FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {size} lines of code"


def names(module: Module) -> Iterator[str]:
    """A module is named for its noun."""
    if set(module.name.split(".")) & set(NO_NAMES):
        yield "says nothing about what is in it"
    if "." in module.name and module.name.rsplit(".", 1)[-1] in PACKAGES:
        yield "shadows a package when it is run as a script"


def declares_all(module: Module) -> Iterator[str]:
    """A public module says what is public in it, and has it."""
    if not _is_public(module) or (module.is_package and len(module.tree.body) <= 1):
        return
    defined: set[str] = set()
    declared: list[str] | None = None
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {(alias.asname or alias.name) for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            if ast.unparse(targets[0]) == "__all__" and node.value is not None:
                declared = [ast.literal_eval(e) for e in getattr(node.value, "elts", [])]
    if declared is None:
        yield "has no __all__"
    # A package may load its names on first use, through a module-level __getattr__.
    elif "__getattr__" not in defined and (missing := set(declared) - defined):
        yield f"__all__ names {sorted(missing)}, which it does not define"


def devices(module: Module) -> Iterator[str]:
    """Nothing is sent to "the" GPU: a device comes from a tensor or from the runtime."""
    for node in ast.walk(module.tree):
        method = node.func if isinstance(node, ast.Call) else None
        if isinstance(method, ast.Attribute) and method.attr == "cuda":
            yield f"line {method.lineno}: {ast.unparse(node)}"


Rule = Callable[[Module], Iterator[str]]
BREAKS: dict[Rule, list[Module]] = {
    arrows: [
        Module("launch.runtime", "from posttrain.objectives import GRPO\n"),
        Module("launch.runtime", "def f():\n    import rl.estimators.kl\n"),
        Module("posttrain.trainers.policy", "from rl import ppo\n"),
        Module("posttrain.trainers.policy", "import rl\n"),
        Module(
            "posttrain.models", "try:\n    from generative.diffusion import paths\nexcept: ...\n"
        ),
        Module("generative.train", "match x:\n    case 1:\n        import rl\n"),
        Module("generative.train", "if x:\n    pass\nelse:\n    import posttrain.models\n"),
        Module("rl.estimators.kl", "from launch.batch import TensorBatch\n"),
        Module("posttrain.objectives.grpo", "from posttrain.rollout.batch import RolloutBatch\n"),
        Module("posttrain.models", "from .rollout import Engine\n"),
        Module("generative.attention.cache", "import generative.data\n"),
    ],
    torch_alone: [
        Module("rl.estimators.kl", "import numpy as np\n"),
        Module("posttrain.objectives.sft", "def f():\n    import transformers\n"),
        Module("generative.attention.linear", "import triton\n"),
        Module("posttrain.objectives.sft", "def f():\n    import triton\n"),
    ],
    no_io: [
        Module("rl.estimators.kl", "print(1)\n"),
        Module("posttrain.objectives.sft", "from pathlib import Path\n"),
    ],
    heavy_only_where_needed: [
        Module("posttrain.eval.run", "from transformers import AutoTokenizer\n"),
        Module("launch.runtime", "def f():\n    import deepspeed\n"),
        Module("launch.report", "import matplotlib.pyplot as plt\n"),
        Module(
            "generative.attention.kernels.cross_entropy",
            "from generative.attention.kernels import _triton_cross_entropy\n",
        ),
    ],
    empty_package: [Module("rl", '"""Doc."""\n\nimport math\n', is_package=True)],
    shifts_only_in_log_probs: [
        Module("posttrain.trainers.policy", "x = model(t).logits[:, :-1].gather(2, t[:, 1:])\n"),
        Module("posttrain.objectives.sft", "y = F.cross_entropy(a, b)\n"),
    ],
    lengths: [
        Module("rl.a", "x = 1\n" * 401),
        Module("rl.a", 'def f():\n    """Doc."""\n' + "    x = 1\n" * 61),
    ],
    names: [
        Module("rl.utils", ""),
        Module("posttrain.common.text", ""),
        Module("posttrain.rl", ""),
    ],
    declares_all: [
        Module("rl.a", "def f(): ...\n"),
        Module("rl.a", '__all__ = ["f", "g"]\ndef f(): ...\n'),
    ],
    devices: [Module("rl.a", "model.cuda()\n"), Module("rl.a", "x = torch.ones(3).cuda(0)\n")],
}
KEEPS = [
    Module("posttrain.a", "from rl.estimators import k3\n__all__: list[str] = []\n"),
    Module("posttrain.a", "from rl import estimators\n__all__: list[str] = []\n"),
    Module("posttrain.a", "import generative.attention.cache\n__all__: list[str] = []\n"),
    Module("launch.a", "def f():\n    import matplotlib\n__all__ = ['f']\n"),
    Module(
        "posttrain.objectives.a",
        "if TYPE_CHECKING:\n    from posttrain.rollout.batch import RolloutBatch\n__all__ = ()\n",
    ),
    Module("posttrain.log_probs", "x = logits[:, :-1]\n__all__ = ()\n"),
    Module("rl", '"""Doc."""\n', is_package=True),
    Module("rl.a", "if torch.cuda.is_available(): ...\n__all__ = ()\n"),
]


@cache
def read_modules() -> Sequence[Module]:
    """Return every module; kept, so that each is parsed once for all rules."""
    modules = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            modules.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return modules


every_rule = pytest.mark.parametrize("rule", BREAKS, ids=lambda rule: rule.__name__)


@every_rule
def test_sources_keep_the_rule(rule: Rule) -> None:
    broken = [f"{m.name}: {found}" for m in read_modules() for found in rule(m)]
    assert not broken, f"{rule.__doc__}\n" + "\n".join(broken)


@every_rule
def test_rule_sees_what_breaks_it(rule: Rule) -> None:
    for module in BREAKS[rule]:
        assert list(rule(module)), f"{rule.__name__} overlooks {module}"


@pytest.mark.parametrize("module", KEEPS, ids=lambda module: module.source[:40])
def test_rules_let_what_is_right_pass(module: Module) -> None:
    assert [found for rule in BREAKS for found in rule(module)] == []


def test_every_package_is_read() -> None:
    names = {module.name for module in read_modules()}
    assert {"launch.batch", "rl.estimators.kl", "posttrain.objectives.grpo"} <= names
    assert len(names) > 25


def test_lists_of_exceptions_name_modules_that_exist() -> None:
    names = {module.name for module in read_modules()}
    listed = {*LONGER, *ARROWS, *TORCH_ALONE}
    listed |= {name for table in (HEAVY, ONLY_IN) for allowed in table.values() for name in allowed}
    assert listed <= names


def test_packages_are_typed_and_tests_shadow_none_of_them() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file(), package
    assert not list((ROOT / "tests").rglob("__init__.py"))
    for folder in ("tests", "benchmarks", "docs"):
        shadows = [path for path in (ROOT / folder).rglob("*.py") if path.stem in PACKAGES]
        assert not shadows


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("rl", ("torch", "gymnasium", "numpy")),
        ("posttrain", ("torch", "transformers", "numpy")),
        ("posttrain.rollout", ("numba", "rl.envs")),
        ("generative", ("torch", "numpy")),
        ("rl.estimators", ("launch", "gymnasium", "transformers", "accelerate", "deepspeed")),
        ("posttrain.objectives", ("launch", "transformers", "accelerate", "posttrain.rollout")),
        ("generative.attention", ("launch", "rl", "posttrain", "transformers", "triton")),
        ("generative.attention.kernels.margin_softmax", ("triton",)),
        ("launch", ("torch", "rl", "posttrain", "generative")),
        ("launch.cli", ("torch", "transformers", "rl", "posttrain", "generative")),
    ],
)
def test_importing_loads_nothing_that_is_not_needed(package: str, absent: tuple[str, ...]) -> None:
    code = f"import json, sys, {package}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = json.loads(done.stdout)
    assert package in loaded
    assert not set(absent) & set(loaded)
    assert done.stderr == ""
