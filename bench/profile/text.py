"""A trace as tables for a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from svilm_fast.bench.profile.trace import SpanTotal, Trace

NAME_WIDTH = 64


def describe(trace: Trace, *, rows: int = 12) -> str:
    """Totals, ranges, operators or kernels, the longest gaps and, with stacks, our functions."""
    steps = len(trace.windows)
    length = trace.length
    working = "GPU at work" if trace.on_gpu else "in operators"
    idle = "GPU idle" if trace.on_gpu else "Python and waiting"
    data = next((cost.total for cost in trace.ranges() if cost.name == "data"), 0.0)
    totals = [
        (f"{steps} step{'s' * (steps > 1)}", length),
        (working, trace.busy()),
        (idle, length - trace.busy()),
        ("collectives under way", trace.communication()),
        ("waiting for data", data),
    ]
    parts = ["\n".join(_total(name, value, length) for name, value in totals)]
    parts.append(_table("range", trace.ranges(), length, rows))
    if trace.on_gpu:
        parts.append(_table("kernel", trace.kernels(), length, rows))
    parts.append(_table("operator (host)", trace.operators(), length, rows))
    if functions := trace.functions():
        named = [SpanTotal(_short(c.name), c.calls, c.total, c.own) for c in functions]
        parts.append(_table("our function, by operators right below it", named, length, rows))
    gaps = [f"{'longest gaps':{NAME_WIDTH}} {'ms':>10}  in range"]
    gaps += [
        f"{'after ' + _cut(before, NAME_WIDTH - 6):{NAME_WIDTH}} {time / 1e3:10.3f}  {where}"
        for time, where, before in trace.gaps()
    ]
    return "\n\n".join([*parts, "\n".join(gaps)])


def outer_tools(command: str) -> str:
    """Commands that profile the same call with NVIDIA's tools; notes tools not on PATH."""
    lines = {
        "nsys": f"nsys profile --trace cuda,nvtx,osrt --output svilm {command} --plain",
        "ncu": "ncu --set full --nvtx --nvtx-include svilm.step/ --launch-count 40 "
        f"--export svilm {command} --plain",
    }
    return "\n".join(
        f"{tool}{'' if shutil.which(tool) else ' (not on PATH here)'}: {line}"
        for tool, line in lines.items()
    )


def _total(name: str, value: float, length: float) -> str:
    return f"{name:24} {value / 1e3:10.3f} ms  {value / length:6.1%}"


def _table(title: str, costs: Sequence[SpanTotal], length: float, rows: int) -> str:
    lines = [f"{title:{NAME_WIDTH}} {'calls':>7} {'ms':>10} {'own ms':>10} {'own':>7}"]
    for cost in costs[:rows]:
        lines.append(
            f"{_cut(cost.name, NAME_WIDTH):{NAME_WIDTH}} {cost.calls:7} {cost.total / 1e3:10.3f} "
            f"{cost.own / 1e3:10.3f} {cost.own / length:7.1%}"
        )
    if len(costs) > rows:
        left = sum(cost.own for cost in costs[rows:])
        more = f"{len(costs) - rows} more"
        lines.append(f"{more:{NAME_WIDTH}} {'':7} {'':10} {left / 1e3:10.3f} {left / length:7.1%}")
    return "\n".join(lines)


def _short(name: str) -> str:
    for root in ("svilm_fast/", "kernels/", "train/", "bench/"):
        if root in name:
            return name[name.rindex(root) :]
    return name


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"
