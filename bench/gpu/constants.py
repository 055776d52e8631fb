"""The numbers that the static model assumes about a GPU, compared with measured ones.

An assumed number is a `Bracket` of `bench.static.machine`, or a single value. A measured one has
samples; its spread is the range of their middle 60 %.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from svilm_fast.bench.static import machine
from svilm_fast.core.files import json_text, write_atomically

KIND = "constants of a GPU"
FILE = "constants.json"
MACHINE = "svilm_fast.bench.static.machine"
LAYOUT = "svilm_fast.kernels.infonce.fused.layout"
# A single assumed value holds if the measured one is this close.
CLOSE = 0.03


@dataclass(frozen=True)
class Constant:
    """A number that is assumed, and how it is measured.

    Attributes:
        name: its name in `module`.
        unit: the unit of the text, `scale` of which are one unit of the source.
        how: what is measured; a reader must be able to tell where it differs from the assumption.
    """

    name: str
    unit: str
    scale: float
    how: str
    module: str = MACHINE

    @property
    def assumed(self) -> tuple[float, ...]:
        """Pessimistic, central and optimistic value, or the single value, in source units."""
        value = getattr(importlib.import_module(self.module), self.name)
        return tuple(value) if isinstance(value, machine.Bracket) else (float(value),)


CONSTANTS = (
    Constant(
        "CLOCK_HZ", "GHz", 1e9, "clocks over time of products in every SM, between cuBLAS products"
    ),
    Constant("L2_RATE", "TB/s", 1e12, "16-byte loads of all SMs from 16 MiB that stay in L2"),
    Constant("DRAM_RATE", "TB/s", 1e12, "a copy of 1 GiB, bytes read and written"),
    Constant(
        "SUSTAINED_FLOPS", "TFLOP/s", 1e12, "cuBLAS, bf16, 8192 cubed, without pause for a second"
    ),
    Constant(
        "PRODUCT_RATE",
        "TFLOP/s",
        1e12,
        "cuBLAS, fp16, the two products of infonce's backward pass for a chunk of its plan",
        LAYOUT,
    ),
    Constant(
        "TENSOR_EFFICIENCY",
        "of the data sheet",
        1.0,
        "FLOP per clock of products whose operands stay in shared memory",
    ),
    Constant(
        "TMA_CLOCKS", "clocks", 1.0, "issue to arrival of 8 KiB from L2 while all SMs read L2"
    ),
    Constant(
        "COPY_CLOCKS",
        "clocks",
        1.0,
        "a load of 4 bytes from L2 to its use, while all SMs read L2",
    ),
    Constant(
        "BLOCK_START_CLOCKS",
        "clocks",
        1.0,
        "last result of a block to the first instruction of the next on the same SM",
    ),
    Constant("BARRIER_CLOCKS", "clocks", 1.0, "a barrier of eight warps that arrive together"),
)
# No kernel alone shows the first three: they are shares, fitted to whole kernels. LIBRARY_FLOPS is
# a bracket around PRODUCT_RATE.
NOT_MEASURED = ("ISSUE_EFFICIENCY", "EXPOSED", "ACHIEVED", "LIBRARY_FLOPS", "LAUNCH_SECONDS")


@dataclass(frozen=True)
class MeasuredConstant:
    """An assumed number beside its measurement, in source units.

    Attributes:
        samples: measured values of all parts.
        parts: medians by part, where a number was measured in several ways (shapes).
        reason: why there is no measurement.
    """

    constant: Constant
    samples: tuple[float, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def spread(self) -> tuple[float, float, float]:
        """20 %, 50 % and 80 % quantile of the samples."""
        low, middle, high = np.quantile(self.samples, (0.2, 0.5, 0.8))
        return float(low), float(middle), float(high)

    @property
    def verdict(self) -> str:
        """`inside` or `outside` the assumed bracket; `not measured` without samples."""
        if not self.samples:
            return "not measured"
        assumed, middle = self.constant.assumed, self.spread[1]
        low, high = min(assumed), max(assumed)
        if len(assumed) == 1:
            low, high = low * (1 - CLOSE), high * (1 + CLOSE)
        return "inside" if low <= middle <= high else "outside"

    @property
    def line_of_source(self) -> str:
        """The line that puts the measured number into its module, with three digits."""
        one = self.constant
        low, middle, high = (float(f"{value:.3g}") for value in self.spread)
        if len(one.assumed) == 1:
            return f"{one.name} = {middle:g}"
        # A bracket runs from pessimistic to optimistic; few clocks are optimistic.
        ascending = one.assumed[0] <= one.assumed[-1]
        ends = (low, high) if ascending else (high, low)
        return f"{one.name} = Bracket({ends[0]:g}, {middle:g}, {ends[1]:g})"

    def as_json(self) -> dict[str, Any]:
        """The comparison as the file holds it."""
        measured = dict(zip(("p20", "median", "p80"), self.spread)) if self.samples else None
        return {
            "name": self.constant.name,
            "module": self.constant.module,
            "how": self.constant.how,
            "unit": self.constant.unit,
            "scale": self.constant.scale,
            "assumed": list(self.constant.assumed),
            "measured": measured,
            "parts": dict(self.parts),
            "samples": list(self.samples),
            "verdict": self.verdict,
            "reason": self.reason,
        }


def line_of(row: Mapping[str, Any]) -> str:
    """A row of the file as text: the assumed number, the measured one, and the verdict."""
    scale = row["scale"]
    assumed = "/".join(f"{value / scale:.4g}" for value in row["assumed"])
    head = f"{row['name']}: assumed {assumed} {row['unit']}, "
    if row["measured"] is None:
        return f"{head}not measured: {row['reason']}"
    low, middle, high = (row["measured"][name] / scale for name in ("p20", "median", "p80"))
    text = f"{head}measured {middle:.4g} ({low:.4g} to {high:.4g}): {row['verdict']}"
    parts = ", ".join(f"{part} {value / scale:.4g}" for part, value in row["parts"].items())
    return f"{text}; {parts}" if parts else text


def write_comparisons(
    path: Path, comparisons: Iterable[MeasuredConstant], environment: Mapping[str, Any]
) -> None:
    """Write the file of one GPU, also over an earlier one.

    Raises ValueError over a file of another kind.
    """
    if path.is_file():
        read_comparisons(path)
    rows = [each.as_json() for each in comparisons]
    content = {"schema": 1, "kind": KIND, "environment": dict(environment), "constants": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json_text(content, indent=1).encode())


def read_comparisons(path: Path) -> list[dict[str, Any]]:
    """The rows of such a file, as they were when it was written.

    Raises:
        ValueError: it is not such a file.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ValueError(f"{path} is not a file of `python -m svilm_fast.bench.gpu.measure`")
    return list(content["constants"])


def summary(comparisons: Sequence[MeasuredConstant], gpu: str) -> list[str]:
    """Lines for people: each number, then those to put into the sources."""
    lines = [f"constants of {gpu}; the assumed ones are those of an H200"]
    lines += [f"  {line_of(each.as_json())}" for each in comparisons]
    lines.append("the measured numbers as source lines (docs/static-gate.md, Measured numbers):")
    measured = (each for each in comparisons if each.samples)
    return lines + [f"  {each.constant.module}: {each.line_of_source}" for each in measured]
