"""A doubled gather, one more wait and a slower tokenizer, each planted in a copy of the project."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from svilm_fast.bench.counts.callgrind import why_unavailable

ROOT = Path(__file__).resolve().parents[2]
GATHER = "gather_parts(texts, plan, group)"
LOSS = "        not_finite = "
ENCODE = "        cleaned = [text.clean(caption) for caption in texts]\n"


@pytest.fixture
def project(tmp_path):
    """A copy of the project and a way to change a line of it and to run `svilm` there."""
    for name in ("kernels", "svilm_fast", "train", "bench", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    return tmp_path


def plant(folder, path, old, new):
    source = (folder / path).read_text()
    assert source.count(old) == 1, f"{old!r} is not once in {path}: update the test"
    (folder / path).write_text(source.replace(old, new))


def svilm(folder, *arguments):
    command = [sys.executable, "-c", "from svilm_fast.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_doubled_gather_and_an_extra_wait_are_seen(project):
    # That the code as it is has the counts of the table is what `make counts-check` is for.
    kinds = ("--kind", "collectives", "--kind", "waits")
    plant(
        project,
        "kernels/infonce/distributed.py",
        GATHER,
        f"(collectives.gather(texts, group), {GATHER})[1]",
    )
    plant(project, "train/engine/engine.py", LOSS, f"        float(loss)\n{LOSS}")
    result = svilm(project, "bench", "counts", "--check", *kinds)
    assert result.returncode == 1, result.stdout + result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("! ")]
    assert any("collectives | op infonce" in line and "allgather" in line for line in lines)
    assert any("waits | step ZeRO 1 | aten::_local_scalar_dense" in line for line in lines)
    assert not any("op grounding" in line for line in lines)


@pytest.mark.slow
@pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))
def test_a_slower_tokenizer_is_seen(project):
    instructions = ("bench", "counts", "--kind", "instructions")
    written = svilm(project, *instructions, "--write", "--only", "tokenizer*")
    assert written.returncode == 0, written.stdout + written.stderr
    plant(
        project,
        "svilm_fast/data/tokenizer.py",
        ENCODE,
        f"        texts = [' '.join(each.split()) for each in texts]\n{ENCODE}",
    )
    result = svilm(project, *instructions, "--check", "--only", "tokenizer*")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "instructions | tokenizer | encode_batch of 64 captions | per call" in result.stdout
