"""Reads untrusted YAML, with limits on size, depth and alias expansion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from svilm_fast.core.errors import ConfigError

LARGEST_FILE = 2**20
# The settings nest five deep; DeepSpeed's own dictionary, four.
DEEPEST = 32
# Nodes after alias expansion.
MOST_NODES = 100_000


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty mapping.

    Raises ConfigError in one line, with file and line number, for text that is not UTF-8 or not
    YAML, more than 1 MiB, more than 32 levels, aliases that expand to more than 100,000 values or
    contain themselves, duplicate keys, and tags that would create other objects.
    """
    with path.open("rb") as file:
        raw = file.read(LARGEST_FILE + 1)
    if len(raw) > LARGEST_FILE:
        raise ConfigError(f"{path} is larger than {LARGEST_FILE:,} bytes, too large for settings")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not valid YAML, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8; "
            "save the file as UTF-8"
        ) from error
    content = parse_yaml(text, f"{path} is")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, found {type(content).__name__}")
    return content


def parse_yaml(text: str, what: str) -> Any:
    """Return the content of a YAML text; `what` begins the error, as in `demo.yaml is`."""
    try:
        _check_size(text)
        return _Loader(text).get_single_data()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"character 0x{error.character:02x} is not allowed"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = " ".join((error.problem or error.context or "cannot be read").split())
    raise ConfigError(f"{what} not valid YAML, line {line}: {problem}")


def _check_size(text: str) -> None:
    """Raise MarkedYAMLError for depth, size and cycles, which PyYAML's loader does not limit."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in opened):
                raise _problem(f"alias *{event.anchor} is inside its own anchor", event)
            nodes += sizes.get(event.anchor or "", 0)
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = nodes - before
        if len(opened) > DEEPEST:
            raise _problem(f"nested more than {DEEPEST} deep", event)
        if nodes > MOST_NODES:
            raise _problem(f"more than {MOST_NODES:,} values, aliases expanded", event)


def _problem(text: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=at.start_mark)


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, and reports the line of a value that cannot be converted."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name = (key.tag, key.value)
                if name in lines:
                    raise _problem(f"key {key.value!r} is already on line {lines[name]}", key)
                lines[name] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
            # For example a date in month 13, `!!int x`, or a number of 5,000 digits.
            raise _problem(f"cannot read {str(node.value)[:40]!r} as {node.tag}", node) from error
