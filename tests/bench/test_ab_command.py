"""`svilm bench ab` at the terminal: usage errors, checkouts that go away, and two real runs."""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from svilm_fast.bench.ab import checkouts as places
from svilm_fast.bench.ab.command import ab, fraction
from svilm_fast.bench.environment import ROOT
from svilm_fast.bench.exit_codes import ExitCode
from tests.bench import ab_suite

CPU = torch.device("cpu")
MODULE = "svilm_fast.bench.ab.ab_suite"
SUITE_FILE = Path("bench") / "ab" / "ab_suite.py"


@pytest.fixture
def call():
    """Run the command; returns click's result."""
    app = Typer()
    app.command()(ab)
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments])


def git(folder, *arguments):
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    command = ["git", "-C", str(folder), *author, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with a package folder, an ignored file and two commits."""
    folder = tmp_path / "clone"
    package = folder / "svilm_fast" / "bench" / "suites"
    package.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    (folder / "note").write_text("before any benchmark\n")
    git(folder, "add", "note")
    git(folder, "commit", "--quiet", "--message", "old")
    git(folder, "tag", "old")
    (package / "__init__.py").write_text("")
    (folder / ".gitignore").write_text("ignored\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "new")
    return folder


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--base", "nowhere"], "no commit 'nowhere'"),
        (["--base", "main", "--head", "gone"], "no commit 'gone'"),
        (["--base", "old", "--head", "main"], "compare a newer one"),
        (["--base", "main", "--aa", "--head", "main"], "leave --head out"),
        (["--base", "main", "--threshold", "two"], "write one like 5%"),
        (["--base", "main", "--must-see", "0.9"], "write one like 5%"),
        (["--base", "main", "--threshold", "5%", "--must-see", "5%"], "must be larger"),
        (["--base", "main", "--confidence", "95"], "'--confidence': Input should be less than"),
        (["--base", "main", "--restarts", "1"], "restarts"),
        ([], "--base"),
    ],
)
def test_wrong_usage_ends_with_its_own_status(call, repository, monkeypatch, arguments, told):
    monkeypatch.setenv("COLUMNS", "300")
    before = signal.getsignal(signal.SIGTERM)
    result = call(*arguments, "--repository", repository, "--device", "cpu")
    assert result.exit_code == ExitCode.USAGE == 2
    assert told in " ".join(result.output.split())
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize("text, value", [("2%", 0.02), ("2.5%", 0.025), ("0%", 0.0)])
def test_shares_are_read_in_percent(text, value):
    assert fraction(text) == pytest.approx(value)


def test_the_head_is_the_working_tree_as_it_is(repository):
    (repository / "svilm_fast" / "bench" / "suites" / "__init__.py").write_text("edited = True\n")
    (repository / "new").write_text("untracked\n")
    (repository / "ignored").write_text("no\n")
    (repository / "note").unlink()
    (repository / "link").symlink_to("new")
    with places.checkouts(repository, "main", None, itself=False) as folders:
        assert (
            folders.head / "svilm_fast/bench/suites/__init__.py"
        ).read_text() == "edited = True\n"
        assert (folders.base / "svilm_fast/bench/suites/__init__.py").read_text() == ""
        assert (folders.head / "new").is_file()
        assert (folders.head / "link").readlink() == Path("new")
        assert not (folders.head / "ignored").exists()
        assert not (folders.head / "note").exists()
        assert len(str(folders.base)) == len(str(folders.head))
    assert not folders.scratch.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_checkouts_go_away_when_the_comparison_breaks(repository):
    with (
        pytest.raises(KeyboardInterrupt),
        places.checkouts(repository, "main", "main", itself=False) as folders,
    ):
        raise KeyboardInterrupt
    assert not folders.scratch.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """This project, with the benchmarks of `ab_suite`, as a repository of one commit."""
    folder = tmp_path_factory.mktemp("project") / "clone"
    ignored = shutil.ignore_patterns("__pycache__", "results", "*.egg-info")
    for name in ("svilm_fast", "kernels", "bench", "train", "configs"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    shutil.copy(ab_suite.__file__, folder / SUITE_FILE)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "base")
    return folder


FEW = ("--module", MODULE, "--device", "cpu", "--pairs", "3")


def verdicts(out):
    result = json.loads(out.read_text())
    return result, {verdict["id"]: verdict for verdict in result["verdicts"]}


@pytest.mark.slow
def test_a_version_is_not_slower_than_itself(call, project, tmp_path):
    out = tmp_path / "aa.json"
    sizes = ("--restarts", "2", "--renewals", "2")
    code = call("--base", "main", "--aa", "--repository", project, "--out", out, *FEW, *sizes)
    result, found = verdicts(out)
    assert code.exit_code in (ExitCode.OK, ExitCode.NOISY)
    assert ExitCode[result["exit_code"]] == code.exit_code
    assert {id.split("/")[1] for id in found} == {"json", "sha256"}
    assert all(verdict["word"] in ("same", "undecided") for verdict in found.values())
    for id in found:
        draws = result["measured"]["draws"][id]
        assert {draw["restart"] for draw in draws} == {0, 1}
        assert [draw["renewal"] for draw in draws if draw["restart"] == 0] == [0, 1]
        assert all(len(draw["ns"]["control"]) == 3 for draw in draws)


@pytest.mark.slow
def test_half_as_slow_again_is_found_and_what_is_broken_fails(call, project, tmp_path):
    ids = list(ab_suite.benchmarks(None, CPU, "*json*"))
    extra = project / "svilm_fast" / ab_suite.EXTRA_FILE
    extra.write_text(json.dumps(dict.fromkeys(ids, 50)))
    suite = project / SUITE_FILE
    text = suite.read_text()
    # The head's own benchmark of sha256 computes something else every time.
    broken = text.replace("import json\n", "import json\nimport os\n").replace(
        ".hexdigest()", ".hexdigest() + str(os.urandom(8))"
    )
    assert broken != text
    suite.write_text(broken)
    try:
        out = tmp_path / "slow.json"
        sizes = ("--restarts", "4", "--renewals", "2", "--controls", "0", "--bench-from", "own")
        code = call("--base", "main", "--repository", project, "--out", out, *FEW, *sizes)
    finally:
        suite.write_text(text)
        extra.unlink()
    result, found = verdicts(out)
    assert code.exit_code == ExitCode.FAILED
    by_name = {id.split("/")[1]: verdict for id, verdict in found.items()}
    assert by_name["json"]["exit_code"] == "REGRESSION"
    assert by_name["json"]["ratio"] > 1.25
    assert by_name["sha256"]["word"] == "wrong_result"
    assert result["commits"]["head_is_working_tree"] is True


@pytest.mark.slow
def test_the_status_is_that_of_the_worst_verdict(call, project, tmp_path):
    """Slower alone ends with 1, an id that the head's own benchmarks dropped with 4."""
    extra = project / "svilm_fast" / ab_suite.EXTRA_FILE
    extra.write_text(json.dumps(dict.fromkeys(ab_suite.benchmarks(None, CPU, "*json*"), 50)))
    suite = project / SUITE_FILE
    text = suite.read_text()
    out = tmp_path / "slow.json"
    sizes = ("--restarts", "4", "--renewals", "2", "--controls", "0", "--repository", project)
    try:
        slower = call("--base", "main", "--out", out, *FEW, *sizes)
        suite.write_text(text.replace('    "sha256": _sha256,\n', ""))
        dropped = call("--base", "main", "--out", out, *FEW, *sizes)
    finally:
        suite.write_text(text)
        extra.unlink()
    assert slower.exit_code == ExitCode.REGRESSION, slower.output
    assert dropped.exit_code == ExitCode.MISSING, dropped.output
    words = {id.split("/")[1]: one["word"] for id, one in verdicts(out)[1].items()}
    assert words == {"json": "slower", "sha256": "missing"}


@pytest.mark.slow
@pytest.mark.parametrize("choice", [("--suite", "nothing"), ("--only", "*/nothing/*")])
def test_a_wrong_suite_or_pattern_is_usage(call, project, choice):
    result = call("--base", "main", "--aa", "--repository", project, "--device", "cpu", *choice)
    assert result.exit_code == ExitCode.USAGE
    assert "nothing" in result.output


@pytest.mark.slow
def test_a_base_without_a_worker_runs_heads_benchmarks_or_says_what_to_do(call, project, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(project, old, symlinks=True)
    (old / "bench" / "ab" / "worker.py").unlink()
    git(old, "add", "--all")
    git(old, "commit", "--quiet", "--message", "older than the worker")
    git(old, "tag", "old")
    shutil.copy(project / "bench" / "ab" / "worker.py", old / "bench" / "ab")
    sizes = ("--restarts", "2", "--renewals", "1", "--repository", old)
    out = tmp_path / "old.json"
    own = call("--base", "old", "--bench-from", "own", "--out", out, *FEW, *sizes)
    assert own.exit_code == ExitCode.FAILED
    assert "svilm_fast.bench.ab" in verdicts(out)[0]["messages"][0]
    code = call("--base", "old", "--out", out, *FEW, *sizes)
    assert code.exit_code in (ExitCode.OK, ExitCode.NOISY)
