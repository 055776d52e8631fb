"""Numeric options refuse meaningless values, such as infinity and NaN."""

from __future__ import annotations

import argparse
import inspect
import typing
from collections.abc import Iterator

import pytest
from typer.models import OptionInfo

from svilm_fast.bench.units import limited_time
from tests.command_lines import lazy_commands

ANY_INTEGER = {
    "svilm bench ab --seed",
    "svilm finetune --local-rank",
    "svilm pretrain --local-rank",
    "svilm train --local-rank",
}


def options() -> Iterator[tuple[str, set[type], OptionInfo]]:
    """Every option of every command: its name, types and declaration."""
    for path, command in lazy_commands():
        function = command.function()
        hints = typing.get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters:
            annotation = hints[parameter]
            if typing.get_origin(annotation) is not typing.Annotated:
                continue
            kind, declared = typing.get_args(annotation)[:2]
            if isinstance(declared, OptionInfo):
                kinds = set(typing.get_args(kind)) or {kind}
                yield f"{path} --{parameter.replace('_', '-')}", kinds, declared


OPTIONS = list(options())


def test_the_commands_are_found() -> None:
    assert len(OPTIONS) > 100
    assert {"svilm bench run --budget", "svilm evaluate retrieval --device"} <= {
        name for name, _, _ in OPTIONS
    }


def test_every_number_has_its_range() -> None:
    without = [
        name
        for name, kinds, declared in OPTIONS
        if (float in kinds and None in (declared.min, declared.max))
        or (int in kinds and declared.min is None and name not in ANY_INTEGER)
    ]
    assert without == []


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1", "1e300", "", "ten"])
def test_a_time_that_is_negative_or_no_number_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number from 0 to 1e6"):
        limited_time(text)


def test_a_time_is_read() -> None:
    assert [limited_time(text) for text in ("0", "0.5")] == [0.0, 0.5]
