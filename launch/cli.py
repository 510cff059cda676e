"""The command line: ``monro list | show | run | launch | plan | report | export | doctor``.

A thin layer over recipes, configs and the runtime. Flags are the keys of a config joined by dots;
``launch.config`` converts them, as it does YAML. What a user can mend is said in one line, with
exit code 2; anything unexpected keeps its traceback.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from launch import processes
from launch.cluster import LAUNCH_OPTIONS, launch
from launch.command_line import Option, Parsed, parse
from launch.config import flags
from launch.errors import UsageError
from launch.plan_devices import DEVICES
from launch.recipe import Recipe, find, recipes
from launch.running import CONFIG_OPTION, RUN_OPTIONS, complete_yaml, configured, run_recipe
from launch.scalars import FlagText, convert_scalar
from launch.spelling import did_you_mean

__all__ = ["main"]

_SUMMARY = "From stochastic approximation to DeepSeek-R1, on one runtime."
_RECIPE = Option("recipe", "A name that `monro list` shows, or package.module:function", "RECIPE")

_PLAN_OPTIONS = (
    CONFIG_OPTION,
    Option("gpus", "Devices that share a step (default: 1)", "N"),
    Option("memory", "Of each device, in GB of 1e9 bytes (default: 80)", "GB"),
    Option("device", f"Its speed: {', '.join(DEVICES)} (default: h100)", "NAME"),
    Option("json", "Print one JSON object: bytes and seconds"),
)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``monro`` with these arguments (by default the process's own); return the exit code."""
    # Else the interpreter, as it ends, looks for cycles in all that torch has made, for a second.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the user's own modules, after everything that is installed
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UsageError as error:
        line = " ".join(str(error).split())
        if not processes.leave_error(line, usage=True):
            print(f"monro: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            line = f"{error.strerror}: {error.filename or 'a file'}"
            if not processes.leave_error(line, usage=True):
                print(f"monro: {line}", file=sys.stderr)
            return 2
        if not processes.leave_error(traceback.format_exc(), usage=False):
            raise
        return 1


def _dispatch(arguments: list[str]) -> int:
    """Find the command, check its arguments, and call it."""
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        from launch.help import overview

        overview("monro", _SUMMARY, [(n, command.summary) for n, command in _COMMANDS.items()])
        return 0
    if name == "--version":
        print(f"monro {version('monro')}")
        return 0
    if name not in _COMMANDS:
        near = did_you_mean(name, _COMMANDS) or f"; the commands are {', '.join(_COMMANDS)}"
        raise UsageError(f"unknown command {name}{near}")
    command = _COMMANDS[name]
    parsed = parse(arguments[1:], command.options)
    if parsed.help and not (command.takes_recipe and parsed.positional):
        from launch.help import command_page

        command_page(f"monro {name}", command.summary, command.arguments, command.options)
        return 0
    given, wanted = parsed.positional, command.arguments
    if len(given) < len(wanted):
        raise UsageError(f"monro {name} needs a {wanted[len(given)].metavar}: see monro {name} -h")
    if len(given) > len(wanted) and not command.takes_many:
        raise UsageError(f"unexpected argument {given[len(wanted)]!r}: see monro {name} --help")
    if parsed.changes and not command.takes_recipe:
        raise UsageError(f"unknown flag --{next(iter(parsed.changes))}: see monro {name} --help")
    return command.call(parsed)


def _list(parsed: Parsed) -> int:
    known = recipes()
    width = max(map(len, known), default=0)
    for name, recipe in known.items():
        print(f"{name:<{width}}  {recipe.summary}".rstrip())
    return 0


def _show(parsed: Parsed) -> int:
    recipe = find(parsed.positional[0])
    if parsed.help:
        return _recipe_help("show", recipe, (CONFIG_OPTION,))
    print(complete_yaml(recipe, configured(recipe, parsed)), end="")
    return 0


def _recipe_help(command: str, recipe: Recipe, options: Sequence[Option]) -> int:
    from launch.help import recipe_page

    recipe_page(f"monro {command} {recipe.name}", recipe.summary, options, flags(recipe.load()))
    return 0


def _run(parsed: Parsed) -> int:
    processes.die_with_parent()  # before the imports of a recipe, which may take long
    recipe = find(parsed.positional[0])
    if parsed.help:
        return _recipe_help("run", recipe, RUN_OPTIONS)
    return run_recipe(recipe, parsed)


def _launch(parsed: Parsed) -> int:
    recipe = find(parsed.positional[0])
    if parsed.help:
        return _recipe_help("launch", recipe, LAUNCH_OPTIONS)
    return launch(recipe, parsed)


def _plan(parsed: Parsed) -> int:
    from launch.plan_command import plan_recipe

    recipe = find(parsed.positional[0])
    if parsed.help:
        return _recipe_help("plan", recipe, _PLAN_OPTIONS)
    return plan_recipe(recipe, parsed)


def _report(parsed: Parsed) -> int:
    from launch.report import compare_reports

    print(compare_reports([Path(folder) for folder in parsed.positional]))
    return 0


def _export(parsed: Parsed) -> int:
    from launch.export import export, parse_size
    from launch.running import as_program

    run, folder = map(Path, parsed.positional)
    text = parsed.options.get("step")
    step = None if text is None else int(str(convert_scalar(FlagText(text), int, "step")))
    shard_size = parse_size(parsed.options.get("shard_size", "5GB"))
    with as_program():
        source = export(run, folder, step=step, shard_size=shard_size)
    print(f"The model of {source} is in {folder}.")
    return 0


def _doctor(parsed: Parsed) -> int:
    from launch.doctor import doctor

    return doctor()


@dataclass(frozen=True, slots=True)
class _Command:
    summary: str
    call: Callable[[Parsed], int]
    arguments: tuple[Option, ...] = ()
    options: tuple[Option, ...] = ()
    takes_many: bool = False

    @property
    def takes_recipe(self) -> bool:
        return self.arguments == (_RECIPE,)


_COMMANDS = {
    "list": _Command("Show the recipes, each with a line", _list),
    "show": _Command(
        "Print a recipe's complete config as YAML", _show, (_RECIPE,), (CONFIG_OPTION,)
    ),
    "run": _Command("Run a recipe; --a.b VALUE changes its config", _run, (_RECIPE,), RUN_OPTIONS),
    "launch": _Command(
        "Run a recipe on several machines, by Slurm or by hand", _launch, (_RECIPE,), LAUNCH_OPTIONS
    ),
    "plan": _Command(
        "Say what a run takes of each device's memory, by strategy, before it is begun",
        _plan,
        (_RECIPE,),
        _PLAN_OPTIONS,
    ),
    "report": _Command(
        "Make the report of a run again, or of several beside each other",
        _report,
        (Option("folders", "Run folders", "DIR"),),
        takes_many=True,
    ),
    "export": _Command(
        "Make an ordinary model folder of a run's checkpoint",
        _export,
        (
            Option("run", "A run folder, or that of one of its stages", "RUN"),
            Option("folder", "A new folder", "DIR"),
        ),
        (
            Option("step", "Of which checkpoint (default: the newest whole one)", "N"),
            Option("shard_size", "Most bytes of a file of weights (default: 5GB)", "SIZE"),
        ),
    ),
    "doctor": _Command("Look at this machine: what would fail, and how to mend it", _doctor),
}
