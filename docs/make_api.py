"""Writes docs/api.md, the reference of the public Python names, from their docstrings.

`python docs/make_api.py` writes the page. With `--check` it only compares: if the page is missing
or out of date, it prints the command that fixes it and exits with 1. MODULES lists the names that
users call; having no underscore is not enough.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("api.md")
WIDTH = 100
# An empty list stands for the module's own `__all__`.
MODULES: dict[str, list[str]] = {
    "svilm_fast.kernels": [],
    "svilm_fast.models.dual_encoder": ["DualEncoder"],
    "svilm_fast.models.features": ["VideoFeatures"],
    "svilm_fast.objectives.svilm": ["SViLM", "build_model"],
    "svilm_fast.data.world": ["WorldConfig", "generate_clip", "render_world"],
    "svilm_fast.data.dataset": ["ClipDataset", "prepare_tokenizer"],
    "svilm_fast.data.tokenizer": ["Tokenizer"],
    "svilm_fast.evaluation": [],
    "svilm_fast.inference.folder": ["load_pretrained"],
    "svilm_fast.inference.model": ["PretrainedModel", "GroundedNouns"],
    "svilm_fast.integrations.open_clip": ["FusedClipLoss"],
    "svilm_fast.train.config.load": ["load_config", "dump_config"],
    "svilm_fast.train.run.loaded_run": ["LoadedRun", "load_run"],
    "svilm_fast.train.run.embedding": ["embed_videos", "embed_texts"],
}
HEAD = """# API reference

Written by `python docs/make_api.py` from the docstrings. A test fails where it is out of date.
[From Python](python.md) shows these functions in use.
"""


def page() -> str:
    """Return the text of the page."""
    return "\n".join([HEAD, *(line for module in MODULES for line in _module(module))])


def _module(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    yield f"## {name}\n"
    yield f"{(inspect.getdoc(module) or '').splitlines()[0]}\n"
    for attribute in MODULES[name] or sorted(module.__all__, key=str.lower):
        yield from _entry(attribute, getattr(module, attribute))


def _entry(name: str, thing: Any) -> Iterator[str]:
    yield f"### {name}\n"
    yield f"```python\n{_signature(name, thing)}\n```\n"
    yield f"```text\n{inspect.getdoc(thing) or 'No docstring.'}\n```\n"
    for method, function in _methods(thing):
        yield f"- `{method}{_plain_signature(function)}`: {_first_paragraph(function)}"
    if any(_methods(thing)):
        yield ""


def _methods(thing: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods that a class itself defines, in the order of its source."""
    for name, value in vars(thing).items() if inspect.isclass(thing) else ():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(function) and not name.startswith("_") and function.__doc__:
            yield name, function


def _first_paragraph(function: Callable[..., Any]) -> str:
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


class _Unquoted(str):
    """An annotation that is shown without quotation marks."""

    def __repr__(self) -> str:
        return str(self)


def _unquoted(annotation: Any) -> Any:
    text = getattr(annotation, "__forward_arg__", annotation)
    return _Unquoted(text) if isinstance(text, str) else annotation


def _plain_signature(thing: Any) -> inspect.Signature:
    found = inspect.signature(thing)
    parameters = [p.replace(annotation=_unquoted(p.annotation)) for p in found.parameters.values()]
    result = _unquoted(found.return_annotation)
    return found.replace(parameters=parameters, return_annotation=result)


def _signature(name: str, thing: Any) -> str:
    signature = _plain_signature(thing)
    if len(name) + len(str(signature)) <= WIDTH:
        return f"{name}{signature}"
    lines, keyword_only = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            lines.append("    *,")
        lines.append(f"    {parameter},")
    result = signature.return_annotation
    arrow = "" if result is signature.empty else f" -> {result}"
    return "\n".join([f"{name}(", *lines, f"){arrow}"])


def main(arguments: Sequence[str]) -> int:
    """Write the page, or compare it; returns the exit code."""
    text = page()
    if list(arguments) == ["--check"]:
        if PAGE.is_file() and PAGE.read_text() == text:
            return 0
        state = "out of date" if PAGE.is_file() else "missing"
        print(f"{PAGE} is {state}: run `python docs/make_api.py`", file=sys.stderr)
        return 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
