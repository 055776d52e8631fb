"""The example workflows fail if one of their commands fails."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
STEPS = [
    (path.name, step.get("name", "step"), step["run"])
    for path in sorted((ROOT / "docs" / "ci").glob("*.yml"))
    for job in yaml.safe_load(path.read_text())["jobs"].values()
    for step in job["steps"]
    if "run" in step
]
# slurm_common.sh has only functions; the scripts that source it set the shell options.
SCRIPTS = [
    path
    for path in [*sorted((ROOT / "train" / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
    if path.name != "slurm_common.sh"
]


def silent_pipes(script: str) -> list[str]:
    """Lines with a pipe that hides a failure, because pipefail is not set before them."""
    found, safe = [], False
    for line in script.splitlines():
        safe |= bool(re.search(r"set\s+-\S*o\s+pipefail|set\s+-\w*o\s*pipefail", line))
        piped = re.search(r"[^|]\|[^|]", re.sub(r"'[^']*'|\"[^\"]*\"", "", line.split("#")[0]))
        if piped and not safe:
            found.append(line.strip())
    return found


@pytest.mark.parametrize(("file", "name", "script"), STEPS, ids=[f"{s[0]}:{s[1]}" for s in STEPS])
def test_no_pipe_of_a_workflow_hides_a_failure(file, name, script):
    assert silent_pipes(script) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_pipe_of_a_script_hides_a_failure(path):
    assert silent_pipes(path.read_text()) == []


def test_unreviewed_code_does_not_reach_the_gpu_runner():
    """A label remains after a push, so a push must not start the workflow."""
    text = (ROOT / "docs" / "ci" / "gpu-gate.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow[True] == {  # YAML 1.1 reads the key "on" as True
        "pull_request": {"types": ["labeled"], "paths": workflow[True]["pull_request"]["paths"]}
    }
    assert workflow["jobs"]["gate"]["if"] == "github.event.label.name == 'gpu'"


def test_the_scan_finds_silent_pipes():
    assert silent_pipes("a | tee b") == ["a | tee b"]
    assert silent_pipes("set -euo pipefail\na | tee b") == []
    assert silent_pipes("a || b") == []


def test_the_gate_takes_the_exit_status_of_the_comparison(tmp_path):
    """Run the step with a stand-in for `svilm` that reports a regression."""
    (script,) = [script for _, name, script in STEPS if name == "Compare both versions in pairs"]
    comparison = tmp_path / ".venv" / "bin" / "svilm"
    comparison.parent.mkdir(parents=True)
    comparison.write_text("#!/bin/sh\necho slower\nexit 1\n")
    comparison.chmod(0o755)
    output = tmp_path / "output"
    script = re.sub(r"\$\{\{.*?\}\}", "main", script)
    # The runner uses bash -e, without pipefail.
    command = ["bash", "-e", "-c", script]
    environment = {"PATH": "/usr/bin:/bin", "GITHUB_OUTPUT": str(output)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert output.read_text() == "status=1\n"
    assert (tmp_path / "ab.txt").read_text() == "slower\n"
