"""Every setting takes a senseless value for a documented reason, or refuses it by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from svilm_fast.core.errors import ConfigError
from svilm_fast.data.world.config import WorldConfig, build_config
from svilm_fast.objectives.config import SViLMConfig
from svilm_fast.train.config.load import (
    annotation_at,
    dotted_keys,
    explain,
    load_config,
    type_words,
    validate,
)

SENSELESS: dict[str, Any] = {
    "inf": math.inf,
    "-inf": -math.inf,
    "nan": math.nan,
    "-1": -1,
    "1e26": 10**26,
    "-1e26": -(10**26),
    "float_1e26": 1e26,
    "list": [],
    "dict": {},
    "empty": "",
    "blank": " ",
    "escape": "\x1b[31m",
    "list_of_nan": [math.nan, math.nan],
    "list_of_1e26": [10**26, 10**26],
    "list_of_three": [0.5, 0.6, 0.7],
    "true": True,
    "null": None,
}
ACCEPTED = {
    ("optimizer.no_decay", "list"): "no name exempts a parameter from decay",
    ("deepspeed.extra", "dict"): "no extras",
}


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def refusal(values: dict[str, Any]) -> str | None:
    try:
        validate(values)
    except ConfigError as error:
        return str(error)
    return None


def may_take(key: str, kind: str) -> bool:
    """Whether the type of a setting says that it takes null, or true."""
    words = type_words(annotation_at(key)).split(" | ")
    return (kind, True) in (("null", "None" in words), ("true", "bool" in words))


def test_every_setting_refuses_senseless_values_by_name() -> None:
    accepted = set()
    for key in dotted_keys():
        for kind, value in SENSELESS.items():
            message = refusal(nested(key, value))
            if message is None:
                accepted.add((key, kind))
                continue
            # A value of the right type may need another setting, which the message then names.
            assert key in message or may_take(key, kind), f"{key}={kind}: {message}"
            assert message.isprintable()
    surprising = {place for place in accepted if not may_take(*place)}
    assert surprising == ACCEPTED.keys()


def test_where_null_is_taken_its_meaning_is_explained() -> None:
    for key in dotted_keys():
        assert not may_take(key, "null") or "null" in explain(key).splitlines()[1], key


@pytest.mark.parametrize("key", WorldConfig.model_fields)
def test_every_setting_of_the_world_refuses_senseless_values_by_name(key: str) -> None:
    for kind, value in SENSELESS.items():
        if kind == "true" and WorldConfig.model_fields[key].annotation is bool:
            continue
        if (key, kind) == ("object_counts", "list_of_three"):
            continue  # the weights of clips with one, two and three objects
        with pytest.raises(ValueError, match=rf"^world settings: {key}"):
            build_config(**{key: value})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.betas=[.nan, .nan]", r"^optimizer.betas\[0\]: .*finite number, found nan"),
        ("optimizer.betas=[0.9]", r"^optimizer.betas\[1\]: Field required"),
        ("optimizer.betas=[0.9, 0.9, 0.9]", r"^optimizer.betas: .* at most 2 items"),
        ("optimizer.betas=[0.9, 1.0]", r"^optimizer.betas\[1\]: .* less than 1, found 1.0"),
        ("objectives.workspace_bytes=-1", r"^objectives.workspace_bytes: .* equal to 1, found -1$"),
        (
            "objectives.workspace_bytes=much",
            r"^objectives.workspace_bytes: expected int \| Lit",
        ),
        ("data.train=[]", r"^data.train: List should have at least 1 item"),
        ("data.train=[1]", r"^data.train: expected str \| list\[str\] \| None, found \[1\]$"),
        ("model.preset=[]", r"^unknown model.preset \[\]: choose one of tiny, small, base, large$"),
        ("training.steps=true", r"^training.steps: must not be true"),
        ("training.micro_batch=true", r"^training.micro_batch: "),
        ("optimizer.lr=1e26", r"^optimizer.lr: .* less than or equal to 1000, found '1e26'$"),
        ("run.seed=9007199254740993", r"^run.seed: must lie between -2\*\*53 and 2\*\*53"),
        ("deepspeed.extra={a: {b: [.inf]}}", r"^deepspeed.extra: must be a finite number"),
    ],
)
def test_the_message_says_what_is_wrong(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"run.seed=[{', '.join(['1'] * 10_000)}]"])
    assert len(str(caught.value)) < 200


def test_the_library_refuses_the_same_values() -> None:
    """`build_model` reads its settings without the command line."""
    for values in ({"model": {"preset": []}}, {"model": []}, {"video": {"width": 10**26}}):
        with pytest.raises(ValidationError):
            SViLMConfig.model_validate(values)
    config = SViLMConfig.model_validate({"model": {"preset": "tiny"}})
    with pytest.raises(ValidationError):
        config.objectives.contrast.weight = math.inf


def test_values_that_people_use_are_taken() -> None:
    config = load_config(
        "svilm_base_1m",
        [
            "optimizer.betas=[0, 0.999]",
            "run.seed=4294967296",
            "training.gradient_clipping=1e9",
            f"training.memory_bytes={10**12}",
            "video.lock=true",
            "data.train=[a b.csv, ünï.csv]",
        ],
    )
    assert config.optimizer.betas == (0, 0.999)
    assert config.training.global_batch == 2**20
