"""The workflows to copy are valid, and every command in them exists with its options."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from svilm_fast.bench.counts.table import KINDS
from svilm_fast.bench.suites.benchmark import SUITES
from tests.command_lines import resolve

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "docs/ci").glob("*.yml"))
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("**/*.md")) if "svilm " in page.read_text()),
]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
VARIABLES = set(re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps(path):
    workflow = yaml.safe_load(path.read_text())
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def script(path):
    return "\n".join(step.get("run", "") for step in steps(path))


def commands(text, name):
    """Words after each call of a program in shell text, up to what ends a command."""
    text = re.sub(r"\$\{\{.*?\}\}", "value", text).replace("\\\n", " ")
    for line in text.splitlines():
        for found in re.finditer(rf"(?:^|[\s/'`]){name} ([^|&;#`]*)", line):
            yield shlex.split(found[1].split("  ")[0])


def check(words):
    command, rest = resolve(words)
    known = {option for parameter in command.params for option in parameter.opts}
    for word in rest:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"svilm {' '.join(words)}: no option {word}"
    values = dict(pairwise(rest))
    for suite in values.get("--suite", "").split(","):
        assert suite in ("", *SUITES)
    kinds = {after for before, after in pairwise(rest) if before == "--kind"}
    assert kinds <= set(KINDS)


def test_both_workflows_are_there():
    assert [path.name for path in WORKFLOWS] == ["cpu-gate.yml", "gpu-gate.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_valid_and_asks_for_few_rights(path):
    workflow = yaml.safe_load(path.read_text())
    # YAML 1.1 reads the key `on` as true.
    assert workflow[True]
    assert workflow["permissions"]["contents"] == "read"
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert job["timeout-minutes"] <= 120
    for step in steps(path):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_svilm_and_make_command_of_a_workflow_exists(path):
    text = script(path)
    called = list(commands(text, "svilm"))
    made = list(commands(text, "make"))
    assert called
    assert made
    for words in called:
        check(words)
    for words in made:
        for word in words:
            name = word.split("=")[0]
            assert name in (VARIABLES if "=" in word else TARGETS), f"make has no {name}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_svilm_command_of_a_page_exists(path):
    # The file name that Nsight is given is no command.
    text = path.read_text().replace("--output svilm ", "").replace("--export svilm ", "")
    called = [words for words in commands(text, "svilm") if words and words[0].isalpha()]
    assert called
    for words in called:
        check([word for word in words if word != "..."])


def test_a_command_that_does_not_exist_is_noticed():
    with pytest.raises(AssertionError, match="no command 'benchmark'"):
        check(["benchmark", "run"])
    with pytest.raises(AssertionError, match="no option --fail"):
        check(["bench", "compare", "a", "b", "--fail"])


def test_the_gate_of_a_gpu_passes_only_on_zero():
    text = script(ROOT / "docs/ci/gpu-gate.yml")
    assert 'test "${{ steps.ab.outputs.status }}" = 0' in text
