"""`svilm bench peers`: paired ratios, the table, and foreign packages that may be absent."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from svilm_fast.bench.ceilings import Ceilings
from svilm_fast.bench.cli import app
from svilm_fast.bench.errors import Skipped
from svilm_fast.bench.peers import peers
from svilm_fast.bench.run import command, peers_command
from svilm_fast.bench.run.ratios import markdown, ratios
from svilm_fast.bench.run.record import Record
from svilm_fast.bench.suites.ops import cases
from svilm_fast.bench.suites.proof import Case
from svilm_fast.kernels import registry
from svilm_fast.kernels.infonce import peers as infonce_peers
from svilm_fast.kernels.registry import ops


def record(provider, samples, *, memory=None, status="ok", direction="forward"):
    parts = {"suite": "ops", "name": "infonce", "case": "small", "dtype": "float32"}
    return Record(
        id=f"ops/infonce/small/float32/{direction}/{provider}",
        **parts,
        direction=direction,
        provider=provider,
        status=status,
        samples_ms=samples,
        median_ms=sorted(samples)[len(samples) // 2] if samples else None,
        peak_extra_bytes=memory,
    )


def test_a_ratio_is_that_of_the_rounds():
    # The machine slows down twentyfold half way: medians of each side alone would say nothing.
    own = tuple([1.0] * 9 + [20.0] * 9)
    peer = tuple(1.5 * sample for sample in own)
    [found] = ratios(
        [record("reference", own, memory=10), record("eager", peer, memory=30)], "reference"
    )
    assert found.time == pytest.approx(1.5)
    assert found.interval == pytest.approx((1.5, 1.5))
    assert found.memory == 3.0


def test_what_was_not_measured_has_no_ratio():
    own = record("reference", (1.0,) * 5)
    absent = record("open_clip", (), status="skipped: open_clip_torch is not installed")
    other = record("eager", (1.0,) * 5, direction="both")
    assert ratios([own, absent, other], "reference") == []
    text = markdown([own, absent], [])
    assert "| open_clip | skipped: open_clip_torch is not installed |" in text


def test_a_peer_that_computes_something_else_is_told_below_the_table():
    own, peer = record("reference", (1.0,) * 5), record("other", (1.0,) * 5)
    assert "Not the op itself" not in markdown([own, peer], [])
    peer = replace(peer, facts={"differs": "one direction of two"})
    text = markdown(iter([own, peer]), [])
    assert text.endswith("Not the op itself:\n\n- other: one direction of two.\n")


def test_the_command_measures_in_turns_and_writes_ratios(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "measure_ceilings", lambda _: Ceilings(1e9, 1e9))
    op = ops()["infonce"]
    sizes = replace(op.sizes, peers={"tiny": {"videos": 8, "texts": 8, "dim": 16}})
    monkeypatch.setitem(registry._OPS, "infonce", replace(op, sizes=sizes))
    out, table = tmp_path / "peers.json", tmp_path / "table.md"
    call = ["peers", "--device", "cpu", "--op", "infonce", "--budget", "0"]
    found = CliRunner().invoke(app, [*call, "--out", str(out), "--table", str(table)])
    assert found.exit_code == 0, found.output
    written = json.loads(out.read_text())
    measured = [one for one in written["records"] if one["status"] == "ok"]
    assert {one["provider"] for one in measured} >= {"reference", "eager"}
    assert {one["direction"] for one in measured} == {"forward", "both"}
    assert all(one["error"] < 1e-3 for one in measured)
    assert {one["provider"] for one in written["ratios"]} >= {"eager"}
    assert table.read_text().startswith("| op and case |")


def test_an_op_without_cases_of_its_own_takes_those_of_the_device():
    cpu = torch.device("cpu")
    assert peers_command._cases(ops()["grouping"], cpu) == cases(ops()["grouping"], cpu)


def test_a_wrong_op_or_case_is_a_usage_error():
    for wrong in (["--op", "pooling"], ["--case", "nothing"]):
        assert CliRunner().invoke(app, ["peers", "--device", "cpu", *wrong]).exit_code == 2


@pytest.fixture
def open_clip_package(tmp_path, monkeypatch):
    """A package whose own import fails, as open_clip's does without torchvision."""
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("import a_package_that_is_not_there\n")
    (package / "loss.py").write_text(
        "import torch.nn.functional as F\n"
        "import torch\n"
        "class ClipLoss:\n"
        "    def __call__(self, images, texts, scale):\n"
        "        logits = scale * images @ texts.T\n"
        "        labels = torch.arange(len(logits))\n"
        "        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    infonce_peers._open_clip_loss.cache_clear()
    yield
    infonce_peers._open_clip_loss.cache_clear()


@pytest.mark.usefixtures("open_clip_package")
def test_open_clips_loss_is_loaded_from_its_file():
    op = ops()["infonce"]
    shape = {"videos": 24, "texts": 24, "dim": 32}
    inputs = op.make_inputs(shape, torch.float32, "cpu", 0)
    found = peers("infonce")["open_clip"](**inputs)
    torch.testing.assert_close(found, op.api(**inputs, backend="reference"))


def test_absent_packages_are_skipped_with_a_reason(monkeypatch):
    monkeypatch.setattr(infonce_peers.importlib.util, "find_spec", lambda _: None)
    infonce_peers._open_clip_loss.cache_clear()
    shape = {"videos": 8, "texts": 8, "dim": 16}
    inputs = ops()["infonce"].make_inputs(shape, torch.float32, "cpu", 0)
    case = Case(ops()["infonce"].reference, inputs, torch.float32, torch.device("cpu"))
    with pytest.raises(Skipped, match="open_clip_torch is not installed"):
        case.verify(peers("infonce")["open_clip"], "forward")
    assert peers("infonce")["inf_cl"](**inputs) is NotImplemented
