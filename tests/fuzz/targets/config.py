"""Configuration: dotted overrides and YAML recipes of any content."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from svilm_fast.train.config.load import (
    dotted_keys,
    dump_config,
    load_config,
)
from svilm_fast.train.config.recipes import PRESETS, preset_names

from ..engine import Target
from ..texts import LEAVES, TEXTS, damaged

KEYS = sorted(dotted_keys())


@st.composite
def _override(draw: st.DrawFn) -> str:
    key = draw(st.sampled_from(KEYS))
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(key)))
        key = key[:at] + draw(st.text(max_size=3)) + key[at + draw(st.integers(0, 2)) :]
    value = draw(
        st.one_of(
            LEAVES.map(str),
            st.sampled_from([
                ".inf", "-.inf", ".nan", "1e400", "1e26", "[.nan, .nan]", "[]", "{}", "null", "~",
                "true", "'", "[1", "{a: b", "&a [*a]", "!!python/name:os.system", "2024-13-45",
                "!!binary x", "- 1", "0x1F", "1_000", "1:30", "<<: {a: 1}", "=", "-1", "0", "1",
                "adamw", "bf16", "fp32", "0.1", "1e-3", "8", "[0.9, 0.95]",
            ]),
            st.integers(1, 3000).map(lambda n: "[" * n),
            TEXTS,
        )
    )  # fmt: skip
    return f"{key}={value}"


@functools.cache
def _recipes() -> list[bytes]:
    return [(PRESETS / f"{name}.yaml").read_bytes() for name in preset_names()]


@st.composite
def _yaml(draw: st.DrawFn) -> bytes:
    text = draw(st.sampled_from(_recipes()))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        depth = draw(st.sampled_from([10, 100, 3000]))
        text += b"\nrun: " + draw(st.sampled_from([b"[", b"{a: "])) * depth
    elif kind == 1:
        rows = [b"a0: &a0 [x, x]"]
        rows += [b"a%d: &a%d [*a%d, *a%d]" % (n, n, n - 1, n - 1) for n in range(1, 30)]
        text = b"\n".join(rows)
    return draw(damaged(text))


CASES = st.one_of(
    st.tuples(st.sampled_from([None, "demo"]), st.lists(_override(), min_size=1, max_size=3)),
    _yaml(),
)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in _numbers(inner)]
    if isinstance(value, list | tuple):
        return [number for inner in value for number in _numbers(inner)]
    return [value] if isinstance(value, float) else []


def check(case: Any, folder: Path) -> None:
    if isinstance(case, bytes):
        (folder / "recipe.yaml").write_bytes(case)
        config = load_config(str(folder / "recipe.yaml"))
    else:
        config = load_config(*case)
    values = config.model_dump(mode="json")
    # Free-form mappings are passed on unchanged.
    values.get("deepspeed", {}).pop("extra", None)
    assert all(map(math.isfinite, _numbers(values))), "a number that is not finite was accepted"
    (folder / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(str(folder / "again.yaml")) == config, "the saved file reads differently"


TARGET = Target("config", CASES, check, short=100)
