"""Forked ranks start and end like separate programs."""

import os

import pytest

PROGRAM = """
import atexit, os, sys
from pathlib import Path

atexit.register(print, "left", os.environ["RANK"])
print(__name__, *sys.argv[1:], os.environ["WORLD_SIZE"], sys.path[0] == str(Path(__file__).parent))
if sys.argv[1] == "fail" and os.environ["RANK"] == "1":
    raise ValueError("planted")
if sys.argv[1] == "hash":
    print(hash("svilm"))
if sys.argv[1] == "exit":
    sys.exit(3)
if sys.argv[1] == "hang":
    import time
    time.sleep(600)
"""


@pytest.fixture
def start(warm_ranks, tmp_path):
    """Run the program with an argument on two ranks; returns their exit codes and outputs."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def started(word, timeout=120.0):
        environments = [os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"} for rank in (0, 1)]
        files = [tmp_path / f"{word}_{rank}" for rank in (0, 1)]
        codes = warm_ranks([str(program), word], environments, files, timeout)
        return codes, [file.read_text() for file in files]

    return started


def test_arguments_environment_and_exit_handlers_are_those_of_a_program(start):
    codes, outputs = start("well")
    assert codes == [0, 0]
    assert outputs == [f"__main__ well 2 True\nleft {rank}\n" for rank in (0, 1)]


def test_an_error_and_an_exit_code_are_those_of_a_program(start):
    codes, outputs = start("fail")
    assert codes == [0, 1]
    assert "ValueError: planted" in outputs[1]
    assert start("exit")[0] == [3, 3]


def test_ranks_have_hash_seeds_of_their_own(start):
    codes, outputs = start("hash")
    assert codes == [0, 0]
    first, second = (output.splitlines()[1] for output in outputs)
    assert first != second


def test_ranks_that_do_not_end_are_killed(start):
    assert start("hang", timeout=0.5)[0] == [None, None]
    assert start("well")[0] == [0, 0]


def test_ranks_of_run_on_ranks_that_fail_fail_the_test(run_on_ranks, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with pytest.raises(AssertionError, match="ValueError: planted"):
        run_on_ranks(2, program, "fail")
