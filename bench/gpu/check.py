"""`make gpu`: the GPU tests side by side, then the op benchmark, whatever the tests said.

    python -m svilm_fast.bench.gpu.check --out bench/results

Needs PyTorch, Triton, einops, pytest and hypothesis. It ends before `--minutes` are over, leaves
`gpu-tests.log` and `<gpu>/ops.json` in the folder, and tells at its end what failed.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from svilm_fast.bench.environment import ROOT
from svilm_fast.bench.gpu.ops_run import RESULTS
from svilm_fast.bench.gpu.parts import Done, run_side_by_side
from svilm_fast.bench.gpu.watched import benchmark
from svilm_fast.bench.units import limited_time
from svilm_fast.core.terminal import print

# Tests mostly wait for the compiler, the benchmark wants the GPU for itself: not at the same time.
TESTS_SHARE = 0.5
# Of the minutes, what starting and writing may take.
RESERVE_S = 45.0
# pytest's exit status where no test of the file was chosen.
NOTHING_CHOSEN = 5


def test_files() -> list[Path]:
    """Test files of the ops with tests that need a GPU."""
    folders = (ROOT / "tests" / "gpu", ROOT / "tests" / "kernels")
    found = [path for folder in folders for path in sorted(folder.rglob("test_*.py"))]
    return [p for p in found if p.parent.name == "gpu" or "mark.gpu" in p.read_text()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where every test passed and every figure of ours is there, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--minutes", type=limited_time, default=9.0, help="for all of it")
    options, more = parser.parse_known_args(arguments)
    begin = time.monotonic()
    # Ended from outside, it ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.out.mkdir(parents=True, exist_ok=True)
    # Each test process compiles a few graphs; a pool of workers for each would be many.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    seconds = options.minutes * 60 - RESERVE_S
    commands = {
        str(path.relative_to(ROOT)): [sys.executable, "-m", "pytest", str(path), "-m", "gpu", "-q"]
        for path in test_files()
    }
    print(f"{len(commands)} test files side by side", flush=True)
    done = run_side_by_side(commands, TESTS_SHARE * seconds)
    log = options.out / "gpu-tests.log"
    log.write_text("".join(f"===== {one.name}\n{one.text}\n" for one in done))
    left = seconds - (time.monotonic() - begin)
    code = benchmark(options.out, left, more=more, tell=lambda text: print(text, flush=True))
    print(summary(done))
    print(f"benchmark: exit status {code}; all of it in {time.monotonic() - begin:.0f} s")
    return int(code != 0 or not all(map(passed, done)))


def passed(part: Done) -> bool:
    """Whether no test failed."""
    return part.code in (0, NOTHING_CHOSEN)


def summary(done: Sequence[Done]) -> str:
    """A line for each test file, and beneath it a line for each test that failed."""
    lines = []
    for part in done:
        told = part.text.strip().splitlines()
        last = told[-1].strip("= ") if told else "no output"
        state = "ended at the limit" if part.code is None else f"exit status {part.code}"
        lines.append(f"{part.name}: {state}, {part.seconds:.0f} s: {last}")
        if not passed(part):
            lines += [f"  {text}" for text in told if re.match(r"(FAILED|ERROR) ", text)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
