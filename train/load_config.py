"""From YAML presets and dotted overrides to a validated configuration."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import svilm_fast
from svilm_fast.core.messages import suggestion
from svilm_fast.core.nested import merge
from svilm_fast.settings import Settings
from svilm_fast.train.config import RunConfig
from svilm_fast.train.errors import ConfigError
from svilm_fast.train.yaml_file import DEEPEST, parse_yaml, read_yaml

# `svilm_fast/configs` is a symlink to `configs/` in a checkout and a real folder in a wheel.
PRESETS = Path(svilm_fast.__file__).parent / "configs"
INHERIT = "base"
# Ends of pydantic's names of the errors that say only that a value has another type.
WRONG_TYPE = ("_type", "_parsing", "literal_error")


def preset_names() -> list[str]:
    """Return the names of the packaged recipes, such as `demo` or `ablations/contrast_only`."""
    return sorted(
        str(path.relative_to(PRESETS).with_suffix("")) for path in PRESETS.rglob("*.yaml")
    )


def find_config(name: str, beside: Path | None = None) -> Path:
    """Find a recipe by path, by path beside another file, or by name among the packaged ones.

    Raises ConfigError naming the nearest recipe when nothing is found.
    """
    given = Path(name)
    packaged = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
    candidates = [given, PRESETS / packaged, PRESETS / f"{name}.yaml"]
    if beside is not None:
        candidates = [beside / given, beside / f"{name}.yaml", *candidates]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = preset_names()
    hint = suggestion(given.stem, names, label="recipes")
    raise ConfigError(f"no configuration file {name!r}; {hint}")


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two layers of a configuration; a length in the upper one replaces the lower one's."""
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


def read_recipe(name: str, beside: Path | None = None, seen: tuple[Path, ...] = ()) -> dict:
    """Read a recipe and, below it, the recipe that its `base:` names."""
    path = find_config(name, beside).resolve()
    if len(seen) >= DEEPEST:
        raise ConfigError(f"{seen[0]} inherits from more than {DEEPEST} recipes")
    if path in seen:
        chain = " -> ".join(item.name for item in (*seen, path))
        raise ConfigError(f"recipes inherit from each other in a circle: {chain}")
    content = read_yaml(path)
    base = content.pop(INHERIT, None)
    if base is None:
        return content
    return overlay(read_recipe(str(base), path.parent, (*seen, path)), content)


def block_of(annotation: Any) -> type[Settings] | None:
    """Return the Settings class that an annotation holds, or None for a leaf."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        blocks = [found for part in typing.get_args(annotation) if (found := block_of(part))]
        return blocks[0] if len(blocks) == 1 else None
    return None


def dotted_keys(block: type[Settings] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield every leaf of the tree as a dotted path."""
    for name, field in block.model_fields.items():
        inner = block_of(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from dotted_keys(inner, f"{prefix}{name}.")


def unknown_key(path: str, block: type[Settings]) -> ConfigError:
    """Build the error for a path whose last part is no key of `block`."""
    prefix, _, key = path.rpartition(".")
    near = difflib.get_close_matches(key, list(block.model_fields), n=1)
    if near:
        suggestion = f"did you mean {f'{prefix}.{near[0]}'.lstrip('.')!r}?"
    else:
        everywhere = list(dotted_keys())
        same_leaf = [known for known in everywhere if known.rsplit(".", 1)[-1] == key]
        elsewhere = same_leaf or difflib.get_close_matches(path, everywhere, n=1, cutoff=0.7)
        suggestion = (
            f"did you mean {elsewhere[0]!r}?"
            if elsewhere
            else f"known keys here: {', '.join(block.model_fields)}"
        )
    return ConfigError(f"unknown key {path!r}: {suggestion}")


def check_keys(
    values: Mapping[str, Any], block: type[Settings] = RunConfig, path: str = ""
) -> None:
    """Raise ConfigError at the first key that the tree does not know."""
    for key, value in values.items():
        here = f"{path}.{key}".lstrip(".")
        if key not in block.model_fields:
            raise unknown_key(here, block)
        inner = block_of(block.model_fields[key].annotation)
        if inner is None:
            continue
        if isinstance(value, Mapping):
            check_keys(value, inner, here)
        elif value is not None and not isinstance(value, inner):
            raise ConfigError(
                f"{here!r} is a block of settings, found {value!r}; set one of its keys: "
                f"{', '.join(f'{here}.{name}' for name in inner.model_fields)}"
            )


def annotation_at(path: str) -> Any:
    """Return the type annotation of a dotted path, or None below a free-form mapping.

    Raises ConfigError when the path is unknown.
    """
    block: type[Settings] | None = RunConfig
    annotation: Any = RunConfig
    parts = path.split(".")
    if len(parts) > DEEPEST:
        raise ConfigError(f"key {path[:40]!r}... is nested more than {DEEPEST} deep")
    for depth, part in enumerate(parts):
        if block is None:
            if typing.get_origin(annotation) is dict:
                return None
            known = ".".join(parts[:depth])
            raise ConfigError(f"unknown key {path!r}: {known!r} is a value, not a block")
        if part not in block.model_fields:
            raise unknown_key(".".join(parts[: depth + 1]), block)
        annotation = block.model_fields[part].annotation
        block = block_of(annotation)
    return annotation


def parse_override(text: str) -> dict[str, Any]:
    """Turn `a.b=value` into a nested mapping; the value is read as YAML."""
    path, equals, raw = text.partition("=")
    path = path.strip().lstrip("-")
    if not equals or not path:
        raise ConfigError(
            f"cannot read the override {text!r}: expected key=value, as in run.seed=1"
        )
    annotation = annotation_at(path)
    nested: Any = raw if annotation is str else parse_yaml(raw, f"the value of {path!r} is")
    for part in reversed(path.split(".")):
        nested = {part: nested}
    return nested


def first_problem(error: ValidationError) -> str:
    """Return one line for the first complaint of pydantic, with the full dotted path."""
    problems = error.errors(include_url=False)
    path, annotation = _setting_at(problems[0]["loc"])
    alike = [p for p in problems if f"{_setting_at(p['loc'])[0]}[".startswith(f"{path}[")]
    # Of a setting that takes several types, pydantic complains about each; a bound says most.
    broken = [problem for problem in alike if not problem["type"].endswith(WRONG_TYPE)]
    first = (broken or alike)[0]
    message = first["msg"].removeprefix("Value error, ")
    if len(alike) > 1 and not broken:
        message = f"expected {type_words(annotation)}"
    more = len(problems) - len(alike)
    tail = f" ({more} more)" if more else ""
    found = "" if first["type"] == "value_error" else f", found {shown(first.get('input'))}"
    return f"{path}: {message}{found}{tail}" if path else f"{message}{tail}"


def _setting_at(location: tuple[int | str, ...]) -> tuple[str, Any]:
    """Return dotted path and annotation of a setting; pydantic's names of its types left out."""
    block: type[Settings] | None = RunConfig
    annotation: Any = None
    path = ""
    for part in location:
        if block is not None and part in block.model_fields:
            path = f"{path}.{part}".lstrip(".")
            annotation = block.model_fields[str(part)].annotation
            block = block_of(annotation)
        elif isinstance(part, int):
            path += f"[{part}]"
    return path, annotation


def shown(value: Any, limit: int = 80) -> str:
    """Return `repr(value)`, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def validate(values: Mapping[str, Any]) -> RunConfig:
    """Build the typed tree, or raise ConfigError with one line."""
    check_keys(values)
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from error


def load_config(source: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a recipe (path or name; None: the defaults) and lay dotted overrides over it."""
    values = read_recipe(source) if source else {}
    for override in overrides:
        values = overlay(values, parse_override(override))
    return validate(values)


def dump_config(config: RunConfig) -> str:
    """Return the whole tree as YAML; `load_config` reads it back to the same tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def type_words(annotation: Any) -> str:
    """Return a type as one writes it, without the bounds that `Annotated` adds."""
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
        inner = block_of(block.model_fields[part].annotation)
        if inner is None:
            raise ConfigError(f"{path!r} lies below a free-form mapping and has no description")
        block = inner
    if parts:
        field = block.model_fields[parts[-1]]
        inner = block_of(field.annotation)
        if inner is None:
            default = field.get_default(call_default_factory=True)
            kind = type_words(field.annotation)
            return f"{path}: {kind} = {default!r}\n    {field.description or ''}".rstrip()
        block = inner
    names = list(block.model_fields)
    return "\n".join(explain(f"{path}.{name}".lstrip(".")) for name in names)
