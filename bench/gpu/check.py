"""`make gpu`: the GPU's constants, the tests in parallel, the op benchmark, even if some failed.

    python -m svilm_fast.bench.gpu.check --out bench/results

Needs PyTorch, Triton, einops, pytest and hypothesis. Ends within `--minutes`, writes
`<gpu>/constants.json`, `gpu-tests.log` and `<gpu>/ops.json` into the folder, and lists at its end
what failed.
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

# The constants that the static model assumes: about 20 s with compiling. They need the GPU alone.
CONSTANTS = "constants of the GPU"
CONSTANTS_S = 60.0
# Share of the rest. Tests mostly wait for the compiler. The benchmark needs the GPU alone, so it
# runs after them.
TESTS_SHARE = 0.5
# Reserved for starting and writing.
RESERVE_S = 45.0
# pytest's exit status if no test of the file was selected.
NOTHING_CHOSEN = 5


def test_files() -> list[Path]:
    """Test files of the ops with tests that need a GPU."""
    folders = (ROOT / "tests" / "gpu", ROOT / "tests" / "kernels")
    found = [path for folder in folders for path in sorted(folder.rglob("test_*.py"))]
    return [p for p in found if p.parent.name == "gpu" or "mark.gpu" in p.read_text()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if all tests passed and all our figures were measured, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--minutes", type=limited_time, default=9.0, help="limit for everything")
    options, more = parser.parse_known_args(arguments)
    begin = time.monotonic()
    # On SIGTERM the children are ended as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.out.mkdir(parents=True, exist_ok=True)
    # Each test process compiles only a few graphs, so large worker pools would be wasted.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    seconds = options.minutes * 60 - RESERVE_S
    commands = {
        str(path.relative_to(ROOT)): [sys.executable, "-m", "pytest", str(path), "-m", "gpu", "-q"]
        for path in test_files()
    }
    command = [sys.executable, "-m", "svilm_fast.bench.gpu.measure", "--out", str(options.out)]
    [constants] = run_side_by_side({CONSTANTS: command}, min(CONSTANTS_S, seconds / 4))
    print(constants.text, end="")
    print(f"{len(commands)} test files in parallel", flush=True)
    left = seconds - (time.monotonic() - begin)
    done = [constants, *run_side_by_side(commands, TESTS_SHARE * left)]
    log = options.out / "gpu-tests.log"
    log.write_text("".join(f"===== {one.name}\n{one.text}\n" for one in done))
    left = seconds - (time.monotonic() - begin)
    code = benchmark(options.out, left, more=more, tell=lambda text: print(text, flush=True))
    print(summary(done))
    print(f"benchmark: exit status {code}; total time {time.monotonic() - begin:.0f} s")
    return int(code != 0 or not all(map(passed, done)))


def passed(part: Done) -> bool:
    """Whether no test failed, or all constants were measured."""
    return part.code == 0 or (part.code == NOTHING_CHOSEN and part.name != CONSTANTS)


def summary(done: Sequence[Done]) -> str:
    """One line for each test file, followed by its failed tests."""
    lines = []
    for part in done:
        output = part.text.strip().splitlines()
        last = output[-1].strip("= ") if output else "no output"
        state = "ended at the limit" if part.code is None else f"exit status {part.code}"
        lines.append(f"{part.name}: {state}, {part.seconds:.0f} s: {last}")
        if not passed(part):
            lines += [f"  {text}" for text in output if re.match(r"(FAILED|ERROR) ", text)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
