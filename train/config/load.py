"""Loads a configuration from YAML recipes and dotted overrides, and validates it."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, create_model

from svilm_fast.core.errors import ConfigError
from svilm_fast.core.nested import merge
from svilm_fast.core.settings import Settings
from svilm_fast.tasks.base import task_class
from svilm_fast.tasks.settings import DEFAULT_TASK, TaskSettings
from svilm_fast.train.config.recipes import find_config
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.config.yaml_file import DEEPEST, parse_yaml, read_yaml

INHERIT = "base"
# Suffixes of pydantic's error names for a value of a wrong type.
WRONG_TYPE = ("_type", "_parsing", "literal_error")


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two layers of a configuration; steps or epochs in `above` replace either in `below`."""
    lengths = ("steps", "epochs")
    above_training, below_training = above.get("training"), below.get("training")
    if (
        isinstance(above_training, Mapping)
        and isinstance(below_training, Mapping)
        and any(above_training.get(name) is not None for name in lengths)
    ):
        kept = {key: value for key, value in below_training.items() if key not in lengths}
        below = {**below, "training": kept}
    return merge(below, above)


def read_recipe(
    name: str,
    named_in: Path | None = None,
    seen: tuple[Path, ...] = (),
    layer: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] = overlay,
) -> dict[str, Any]:
    """Read a recipe, merged by `layer` over the recipe that its `base:` names."""
    path = find_config(name, named_in).resolve()
    if len(seen) >= DEEPEST:
        raise ConfigError(f"{seen[0]} inherits from more than {DEEPEST} files")
    if path in seen:
        chain = " -> ".join(item.name for item in (*seen, path))
        raise ConfigError(f"files inherit from each other in a cycle: {chain}")
    content = read_yaml(path)
    base = content.pop(INHERIT, None)
    if base is None:
        return content
    return layer(read_recipe(str(base), path, (*seen, path), layer), content)


def block_of(annotation: Any) -> type[Settings] | None:
    """Return the Settings class in an annotation, or None for a leaf."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        blocks = [found for part in typing.get_args(annotation) if (found := block_of(part))]
        return blocks[0] if len(blocks) == 1 else None
    return None


def dotted_keys(block: type[Settings] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield every leaf of the tree as a dotted path."""
    for name in block.known_keys():
        inner = block_of(annotation_of(block, name))
        if inner is None:
            yield prefix + name
        else:
            yield from dotted_keys(inner, f"{prefix}{name}.")


def annotation_of(block: type[Settings], key: str, value: Any = None) -> Any:
    """Return the type of a key of `block` with this value, or None for an unknown key."""
    field = block.model_fields.get(key)
    return block.block_at(key, value) if field is None else field.annotation


def unknown_key(path: str, block: type[Settings], root: type[RunConfig] = RunConfig) -> ConfigError:
    """Return the error for a path whose last part is not a key of `block`, a block of `root`."""
    prefix, _, key = path.rpartition(".")
    near = difflib.get_close_matches(key, block.known_keys(), n=1)
    if near:
        suggestion = f"did you mean {f'{prefix}.{near[0]}'.lstrip('.')!r}?"
    else:
        everywhere = list(dotted_keys(root))
        same_leaf = [known for known in everywhere if known.rsplit(".", 1)[-1] == key]
        elsewhere = same_leaf or difflib.get_close_matches(path, everywhere, n=1, cutoff=0.7)
        suggestion = (
            f"did you mean {elsewhere[0]!r}?"
            if elsewhere
            else f"known keys here: {', '.join(block.known_keys())}"
        )
    return ConfigError(f"unknown key {path!r}: {suggestion}")


def check_keys(
    values: Mapping[str, Any], block: type[Settings] = RunConfig, path: str = ""
) -> None:
    """Raise ConfigError for the first unknown key."""
    for key, value in values.items():
        here = f"{path}.{key}".lstrip(".")
        annotation = annotation_of(block, key, value)
        if annotation is None:
            problem = block.problem_of(str(key), value)
            raise ConfigError(problem) if problem else unknown_key(here, block)
        inner = block_of(annotation)
        if inner is None:
            continue
        if isinstance(value, Mapping):
            check_keys(value, inner, here)
        elif value is not None and not isinstance(value, inner):
            raise ConfigError(
                f"{here!r} is a block of settings, found {value!r}; set one of its keys: "
                f"{', '.join(f'{here}.{name}' for name in inner.model_fields)}"
            )


def annotation_at(path: str, root: type[RunConfig] = RunConfig, *, whole: bool = True) -> Any:
    """Return the type annotation of a dotted path, or None below a free-form mapping.

    whole: False if other overrides may still give the kind of a new objective, whose keys are
    unknown before; `check_keys` checks them later. Raises ConfigError for an unknown path.
    """
    block: type[Settings] | None = root
    annotation: Any = root
    parts = path.split(".")
    if len(parts) > DEEPEST:
        raise ConfigError(f"key {path[:40]!r}... is nested more than {DEEPEST} deep")
    for depth, part in enumerate(parts):
        if block is None:
            if typing.get_origin(annotation) is dict:
                return None
            known = ".".join(parts[:depth])
            raise ConfigError(f"unknown key {path!r}: {known!r} is a value, not a block")
        annotation = annotation_of(block, part)
        if annotation is None:
            here = ".".join(parts[: depth + 1])
            problem = block.problem_of(part, None)
            if problem and not whole:
                return None
            raise ConfigError(problem) if problem else unknown_key(here, block, root)
        block = block_of(annotation)
    return annotation


def parse_override(text: str, root: type[RunConfig] = RunConfig) -> dict[str, Any]:
    """Return `a.b=value` as a nested mapping; the value is parsed as YAML."""
    path, equals, raw = text.partition("=")
    path = path.strip().lstrip("-")
    if not equals or not path:
        raise ConfigError(
            f"cannot read the override {text!r}: expected key=value, as in run.seed=1"
        )
    annotation = annotation_at(path, root, whole=False)
    nested: Any = raw if annotation is str else parse_yaml(raw, f"the value of {path!r} is")
    for part in reversed(path.split(".")):
        nested = {part: nested}
    return nested


def first_problem(
    error: ValidationError, values: Mapping[str, Any], root: type[RunConfig] = RunConfig
) -> str:
    """Return pydantic's first error about `values` in one line, with the dotted path."""
    problems = error.errors(include_url=False)
    path, annotation = _setting_at(problems[0]["loc"], values, root)
    alike = [
        problem
        for problem in problems
        if f"{_setting_at(problem['loc'], values, root)[0]}[".startswith(f"{path}[")
    ]
    # For a setting with several types pydantic reports each; a violated bound is most useful.
    broken = [problem for problem in alike if not problem["type"].endswith(WRONG_TYPE)]
    first = (broken or alike)[0]
    message = first["msg"].removeprefix("Value error, ")
    if len(alike) > 1 and not broken:
        message = f"expected {type_words(annotation)}"
    more = len(problems) - len(alike)
    tail = f" ({more} more)" if more else ""
    found = "" if first["type"] == "value_error" else f", found {shown(first.get('input'))}"
    return f"{path}: {message}{found}{tail}" if path else f"{message}{tail}"


def _setting_at(
    location: tuple[int | str, ...], value: Any, root: type[RunConfig]
) -> tuple[str, Any]:
    """Return dotted path and annotation of a setting, without pydantic's names of its types."""
    block: type[Settings] | None = root
    annotation: Any = None
    path = ""
    for part in location:
        value = value.get(part) if isinstance(value, Mapping) else None
        found = annotation_of(block, str(part), value) if block is not None else None
        if found is not None:
            path = f"{path}.{part}".lstrip(".")
            annotation, block = found, block_of(found)
        elif isinstance(part, int):
            path += f"[{part}]"
    return path, annotation


def shown(value: Any) -> str:
    """Return `repr(value)`, at most 80 characters of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def validate(values: Mapping[str, Any]) -> RunConfig:
    """Return the typed tree for the task in `values`. Raises ConfigError with one line."""
    root = tree_of(task_name_in(values))
    check_keys(values, root)
    try:
        return root.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(first_problem(error, values, root)) from error


@cache
def tree_of(task: str) -> type[RunConfig]:
    """Return the configuration tree with the settings of a task in its block `task`.

    Raises ConfigError for an unknown task.
    """
    if task == DEFAULT_TASK:
        return RunConfig
    settings = task_class(task).Settings
    if settings is TaskSettings:
        return RunConfig
    block: Any = (settings, Field(default_factory=lambda: settings(name=task)))
    return create_model("RunConfig", __base__=RunConfig, task=block)


def task_name_in(values: Mapping[str, Any], absent: str = DEFAULT_TASK) -> str:
    """Return the task name in unchecked settings, or `absent` if there is none."""
    block = values.get("task")
    name = block.get("name", absent) if isinstance(block, Mapping) else absent
    return name if isinstance(name, str) else absent


def load_config(
    source: str | None,
    overrides: Sequence[str] = (),
    task: str | None = None,
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> RunConfig:
    """Load a recipe (path or name; None: the defaults) and apply dotted overrides.

    task: the task that the command trains. Raises ConfigError if recipe or overrides name another.
    complete: changes the recipe's values before the overrides are applied.
    """
    values = read_recipe(source) if source else {}
    if complete is not None:
        values = complete(values)
    # The task first, because it determines the keys of its block.
    for override in overrides:
        if override.partition("=")[0].strip().lstrip("-") in ("task", "task.name"):
            values = overlay(values, parse_override(override))
    if task is not None:
        named = task_name_in(values, absent=task)
        if named != task:
            raise ConfigError(
                f"the settings name task {named!r}, and this command trains {task!r}: use "
                f"`svilm train --task {named}`, or other settings"
            )
        values = overlay(values, {"task": {"name": task}})
    root = tree_of(task_name_in(values))
    for override in overrides:
        values = overlay(values, parse_override(override, root))
    return validate(values)


def dump_config(config: RunConfig) -> str:
    """Return the whole tree as YAML; `load_config` reads it back to the same tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def type_words(annotation: Any) -> str:
    """Return a type as text, without the bounds that `Annotated` adds."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_words(parts[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_words(part) for part in parts)
    if origin is tuple:
        return f"tuple[{', '.join('...' if p is ... else type_words(p) for p in parts)}]"
    if origin is list:
        return f"list[{type_words(parts[0])}]"
    if annotation is types.NoneType:
        return "None"
    if isinstance(annotation, type) and not parts:
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def explain(path: str) -> str:
    """Return type, default and meaning of a key, or of all keys of a block."""
    block: type[Settings] = RunConfig
    parts = path.split(".") if path else []
    annotation_at(path) if path else None
    for part in parts[:-1]:
        inner = block_of(annotation_of(block, part))
        if inner is None:
            raise ConfigError(f"{path!r} is inside a free-form mapping and has no description")
        block = inner
    if parts:
        inner = block_of(annotation_of(block, parts[-1]))
        if inner is None:
            field = block.model_fields[parts[-1]]
            default = field.get_default(call_default_factory=True)
            kind = type_words(field.annotation)
            return f"{path}: {kind} = {default!r}\n    {field.description or ''}".rstrip()
        block = inner
    return "\n".join(explain(f"{path}.{name}".lstrip(".")) for name in block.known_keys())
