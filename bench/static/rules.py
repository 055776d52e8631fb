"""The rules for every row, and the differences between two tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from svilm_fast.bench.static.structure import NOT_MODELLED
from svilm_fast.bench.static.table import KernelRow


@dataclass(frozen=True)
class StaticRule:
    """A property of a row; `complaint` returns a text if the row violates it."""

    name: str
    complaint: Callable[[KernelRow], str | None]


def _tensor_core_kind(row: KernelRow) -> str | None:
    wanted = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA"}[row.target]
    kinds = {part.split(":")[0] for part in row.tensor_instructions.split()}
    if row.half_precision_dot and wanted not in kinds:
        return f"half-precision product without {wanted} (has: {row.tensor_instructions or 'none'})"
    return None


def _when(broken: Callable[[KernelRow], bool], text: str) -> Callable[[KernelRow], str | None]:
    return lambda row: text.format(**asdict(row)) if broken(row) else None


RULES: tuple[StaticRule, ...] = (
    StaticRule(
        "spills",
        _when(
            lambda row: row.spill_bytes > 0 or row.local_accesses > 0,
            "spills {spill_bytes} bytes ({local_accesses} accesses to local memory)",
        ),
    ),
    StaticRule("fp64", _when(lambda row: row.fp64 > 0, "{fp64} fp64 instructions")),
    StaticRule("atomics", _when(lambda row: row.atomics > 0, "{atomics} atomic instructions")),
    StaticRule(
        "shared",
        _when(
            lambda row: row.shared_bytes > row.shared_limit,
            "{shared_bytes} bytes of shared memory, the limit is {shared_limit}",
        ),
    ),
    StaticRule("occupancy", _when(lambda row: row.blocks_per_sm == 0, "no block fits on an SM")),
    StaticRule("tensor_cores", _tensor_core_kind),
    StaticRule(
        "loop_stores",
        _when(lambda row: row.loop_stores > 0, "{loop_stores} global stores inside the main loop"),
    ),
    StaticRule(
        "structure",
        _when(lambda row: row.bound.startswith(NOT_MODELLED), "the static model: {bound}"),
    ),
    StaticRule(
        "products",
        _when(
            lambda row: row.products_percent not in (0, 100),  # 0: not modelled
            "executes {products_percent} % of the FLOPs that the products of a tile need",
        ),
    ),
    StaticRule(
        "tf32",
        _when(lambda row: row.tf32, "an fp32 product is lowered to tf32 tensor-core instructions"),
    ),
    StaticRule(
        "alignment",
        _when(
            lambda row: row.half_precision_dot and row.loads > 0 and row.wide_loads == 0,
            "none of {loads} loads is 16 bytes wide",
        ),
    ),
)


def broken_rules(row: KernelRow) -> list[str]:
    """Violations of one row, except those that its `reason` excuses (`rule: why; rule: why`)."""
    excused = {part.split(":")[0].strip() for part in row.reason.split(";") if ":" in part}
    found = []
    for rule in RULES:
        complaint = rule.complaint(row)
        if complaint is not None and rule.name not in excused:
            found.append(f"[{rule.name}] {complaint}")
    return found


def with_reasons(rows: list[KernelRow], recorded: list[KernelRow]) -> list[KernelRow]:
    """`rows` with the hand-written reasons of the same keys in `recorded`."""
    reasons = {row.key: row.reason for row in recorded}
    return [KernelRow(**{**asdict(row), "reason": reasons.get(row.key, "")}) for row in rows]


def part_of_table(
    rows: list[KernelRow], recorded: list[KernelRow], chosen: set[tuple[str, str]]
) -> tuple[list[KernelRow], list[KernelRow]]:
    """Both tables restricted to the chosen (op, variant).

    A kernel that several variants share has one row, under the first of them. If that variant was
    not chosen, both sides leave the row out.
    """
    elsewhere = {
        (row.kernel, row.target) for row in recorded if (row.op, row.variant) not in chosen
    }
    known = {row.key for row in recorded}
    part = [row for row in recorded if (row.op, row.variant) in chosen]
    return [
        row for row in rows if row.key in known or (row.kernel, row.target) not in elsewhere
    ], part


def differences(recorded: list[KernelRow], measured: list[KernelRow]) -> list[str]:
    """Readable differences between the table under version control and a new one."""
    old, new = {row.key: row for row in recorded}, {row.key: row for row in measured}
    lines = [
        f"- {key}: in the table, but no longer declared" for key in sorted(old.keys() - new.keys())
    ]
    lines += [f"+ {key}: declared, but not in the table" for key in sorted(new.keys() - old.keys())]
    for key in sorted(old.keys() & new.keys()):
        before, after = asdict(old[key]), asdict(new[key])
        changed = [
            f"{name} {before[name]} -> {after[name]}"
            for name in before
            if name != "reason" and before[name] != after[name]
        ]
        if changed:
            lines.append(f"~ {key}: {', '.join(changed)}")
    return lines
