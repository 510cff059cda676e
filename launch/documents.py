"""YAML text: read strictly, written so that it comes back as it was."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from launch.errors import UsageError

__all__ = ["read_document", "write_document", "write_line"]

# YAML 1.1, which PyYAML reads, wants a point and a signed exponent: 1e-4 would be a string.
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+\Z")
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """Safe; refuses duplicate keys, reads 1e-4 as a number and leaves dates as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):  # the base class complains of the others
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"duplicate key {key}", problem_mark=key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Mappings over lines, lists of scalars on one line, no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


class _LineDumper(_Dumper):
    """Everything on one line."""


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
    flow = not any(isinstance(item, (list, dict)) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML loses a next-line character outside double quotes.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in _class.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)
_LineDumper.add_representer(list, yaml.SafeDumper.represent_list)


def read_document(text: str, *, source: str) -> object:
    """Return what YAML text says.

    Args:
        text: The YAML.
        source: Its file or flag, for messages.

    Raises:
        UsageError: The text does not parse, or a key stands twice; names source and line.

    >>> read_document("rate: 1e-4", source="rates.yaml")
    {'rate': 0.0001}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise UsageError(f"{source}{where}: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{source}: this is no YAML: {reason}") from None


def write_document(data: object) -> str:
    """Return YAML that ``read_document`` reads back as ``data``: dicts, lists and scalars."""
    text: str = yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=100,
    )
    return text


def write_line(data: object) -> str:
    """Return YAML on one line, as a flag takes it.

    >>> write_line([1e-4, None]), write_line({"a": "x y"}), write_line(True)
    ('[0.0001, null]', '{a: x y}', 'true')
    """
    text: str = yaml.dump(
        [data], Dumper=_LineDumper, sort_keys=False, default_flow_style=True, width=10**9
    )
    return text.strip()[1:-1]
