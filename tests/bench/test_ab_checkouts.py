"""The head's benchmarks over the base's library: one name means the same work on both sides."""

from __future__ import annotations

from pathlib import Path

from svilm_fast.bench.ab.checkouts import take_benchmarks_from


def _checkout(root: Path, mark: str, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(mark)
    return root


def test_cases_and_peers_come_along_and_kernels_stay(tmp_path: Path) -> None:
    declared = ("bench/run.py", "kernels/peers.py", "kernels/op/cases.py", "kernels/op/peers.py")
    kept = ("kernels/op/api.py", "kernels/op/fused/forward.py", "kernels/registry.py")
    head = _checkout(tmp_path / "head", "head", *declared, *kept, "kernels/new/cases.py")
    base = _checkout(tmp_path / "base", "base", *declared, *kept, "bench/gone.py")
    take_benchmarks_from(head, base)
    assert {(base / name).read_text() for name in declared} == {"head"}
    assert {(base / name).read_text() for name in kept} == {"base"}
    assert not (base / "bench/gone.py").exists()
    assert not (base / "kernels/new").exists()
