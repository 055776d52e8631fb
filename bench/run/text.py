"""Records as lines of text, and the exit code of a run."""

from __future__ import annotations

from collections.abc import Iterable

from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.peers import is_peer
from svilm_fast.bench.run.record import Record
from svilm_fast.core.units import bytes_text, time_text


def failures(records: Iterable[Record]) -> list[Record]:
    """Records without a figure, except skipped ones and peers that do not fit into memory."""
    return [
        record
        for record in records
        if not record.measured
        and not record.skipped
        and not (record.status == "oom" and is_peer(record.provider))
    ]


def exit_code(records: Iterable[Record]) -> ExitCode:
    """`FAILED` if a record is a failure, `MISSING` if nothing was measured."""
    records = list(records)
    if failures(records):
        return ExitCode.FAILED
    return ExitCode.OK if any(record.measured for record in records) else ExitCode.MISSING


def status_text(record: Record) -> str:
    """The status, with the reason from the facts."""
    if record.measured and record.time_ms is None:
        return "no figure"
    reason = record.facts.get("reason")
    if reason is None or record.status.endswith(str(reason)):
        return record.status
    return f"{record.status}: {reason}"


def gluon_against_fused(records: Iterable[Record]) -> list[str]:
    """For every case that both measured: whether the Gluon or the plain Triton kernels win.

    Neither wins where the middle 60 % of the samples of one overlap with those of the other.
    """
    known: dict[tuple[str, ...], tuple[float, float, float]] = {}
    for record in records:
        if record.time_ms and record.p20_ms and record.p80_ms:
            key = record.provider, record.name, record.case, record.dtype, record.direction
            known[key] = record.p20_ms, record.time_ms, record.p80_ms
    lines = []
    for (provider, *call), (low, middle, high) in known.items():
        plain = known.get(("fused", *call))
        if provider != "gluon" or plain is None:
            continue
        ratio = f"{plain[1] / middle:.3f} times as fast as plain Triton"
        if high < plain[0]:
            verdict = f"Gluon wins: {ratio}"
        elif plain[2] < low:
            verdict = f"plain Triton wins: Gluon is {ratio}"
        else:
            verdict = f"no winner: Gluon is {ratio}, within the spread"
        lines.append(f"{' '.join(call)}: {verdict}")
    return lines


def differences(records: Iterable[Record]) -> list[str]:
    """A sentence for each peer that does not give what its op gives."""
    found = {
        record.provider: str(record.facts["differs"])
        for record in records
        if "differs" in record.facts
    }
    return [f"{provider}: {differs}." for provider, differs in found.items()]


def rates(record: Record) -> list[str]:
    """Rates per second; for a step also its FLOPs and losses as fractions."""
    texts = [f"{rate:.4g} {unit}/s" for unit, rate in record.rates_per_s.items()]
    executed = record.facts.get("executed_flops")
    if executed is not None and record.flops and record.product_fraction is not None:
        share = record.product_fraction * executed / record.flops
        texts.append(f"executed {share:.1%} of the product rate")
    if "losses_share" in record.facts:
        texts.append(f"losses {record.facts['losses_share']:.1%}")
    return texts


def line(record: Record) -> str:
    """One measurement as a line of text."""
    head = f"{record.id:72}"
    if record.time_ms is None:
        return f"{head} {status_text(record)}"
    parts = [f"{time_text(record.time_ms):>12}"]
    if record.product_fraction is not None and record.copy_fraction is not None:
        parts.append(f"product {record.product_fraction:6.1%}  copy {record.copy_fraction:6.1%}")
    if record.peak_extra_bytes is not None:
        parts.append(f"{bytes_text(record.peak_extra_bytes):>12}")
    parts += rates(record)
    if record.error is not None:
        parts.append(f"error {record.error:.1e}")
    if record.host_us is not None:
        parts.append(f"host {record.host_us:.0f} us")
    return f"{head} {'  '.join(parts)}"
