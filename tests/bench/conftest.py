"""A result as a GPU run would write it, made up from a simple model of time and memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CEILINGS = {"product_flops": 7.9e14, "copy_bytes": 4.1e12}
ENVIRONMENT = {
    "time": "2026-01-01T00:00:00+00:00",
    "gpu": "Made-up GPU",
    "gpu_memory_bytes": 140 * 2**30,
    "cpu": "Made-up CPU",
    "torch": "2.13.0",
    "commit": "0123456789abcdef",
    "dirty": False,
    "fingerprint": "f00d",
    "gpu_state": {"clocks.sm": "1980 MHz"},
}
# Share of the binding ceiling that a provider reaches, and the bytes it needs per logit.
PROVIDERS = {"fused": (0.62, 0.0), "reference": (0.09, 0.2), "eager": (0.21, 10.0)}
PROVIDERS |= {"compile": (0.35, 6.0), "inf_cl": (0.28, 0.1)}


def _record(case: str, batch: int, dim: int, direction: str, provider: str, slow: float) -> dict:
    share, per_logit = PROVIDERS[provider]
    passes = {"forward": 1, "backward": 3, "both": 4}[direction]
    flops, moved = 2.0 * passes * batch**2 * dim, 4.0 * passes * batch * dim
    floor = max(flops / CEILINGS["product_flops"], moved / CEILINGS["copy_bytes"])
    record = {"id": f"ops/infonce/{case}/bfloat16/{direction}/{provider}", "suite": "ops"}
    memory = 4 * batch * dim + per_logit * batch**2
    if memory > ENVIRONMENT["gpu_memory_bytes"] / 4:
        return record | {"status": "oom"}
    ms = 1e3 * (floor / share + 2e-5) * slow
    return record | {
        "status": "ok",
        "error": 3e-4,
        "median_ms": ms,
        "p20_ms": 0.99 * ms,
        "p80_ms": 1.02 * ms,
        "samples_ms": [0.99 * ms, ms, 1.02 * ms],
        "peak_extra_bytes": int(memory),
        "host_us": 61.0,
        "flops": flops,
        "bytes": moved,
        "product_fraction": flops / (ms * 1e-3) / CEILINGS["product_flops"],
        "copy_fraction": moved / (ms * 1e-3) / CEILINGS["copy_bytes"],
        "rates_per_s": {"pairs": batch / (ms * 1e-3)},
        "facts": {"shape": {"videos": batch, "texts": batch, "dim": dim}},
    }


def gpu_result(*, slow: float = 1.0, **environment: object) -> dict:
    """The content of a result file; every time is multiplied by `slow`."""
    records = [
        _record(f"pairs_{batch}_dim_512", batch, 512, direction, provider, slow)
        for batch in (1024, 4096, 16384, 65536)
        for provider in PROVIDERS
        for direction in ("forward", "backward", "both")
    ]
    broken = "ops/temporal/target/bfloat16/both/fused"
    records.append({"id": broken, "suite": "ops", "status": "failed: ValueError: <b>no</b>"})
    skipped = "blocks/attention/clips_2/bfloat16/both/xformers"
    records.append({"id": skipped, "suite": "blocks", "status": "skipped: no xformers"})
    return {
        "schema": 1,
        "environment": ENVIRONMENT | environment,
        "ceilings": CEILINGS,
        "records": records,
    }


@pytest.fixture
def gpu_file(tmp_path: Path):
    """Writes such a result and returns its path."""

    def write(name: str = "run.json", **changes: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(gpu_result(**changes)))  # type: ignore[arg-type]
        return path

    return write
