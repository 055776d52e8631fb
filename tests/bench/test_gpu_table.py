"""The README's table of GPU figures is what the result files say, and nothing else."""

import json

import pytest

from svilm_fast.bench.environment import ROOT
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.generated_section import read_section, write_section
from svilm_fast.bench.report.gpu_table import NOTHING, SECTION, gpu_section
from svilm_fast.bench.run.file import read_results
from svilm_fast.cli import main

GPU = {"gpu": "Made Up GPU", "torch": "2.11", "triton": "3.6", "commit": "abcdef0123456789"}


def record(provider, median_ms, *, op="infonce", status="ok", direction="both", fraction=0.5):
    return {
        "id": f"ops/{op}/big/bfloat16/{direction}/{provider}",
        "status": status,
        "median_ms": median_ms,
        "peak_extra_bytes": 3 * 2**20,
        "flops": 2e12,
        "bytes": 1e9,
        "product_fraction": fraction,
        "copy_fraction": 0.25,
    }


@pytest.fixture
def written(tmp_path):
    """A result file with these records; returns its path."""

    def write(records, **more):
        path = tmp_path / "ops.json"
        content = {"schema": 1, "environment": GPU | {"dirty": False}, "records": records}
        path.write_text(json.dumps(content | more))
        return path

    return write


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"before\n<!-- {SECTION} -->\nold\n<!-- end of {SECTION} -->\nafter\n")
    return path


def table(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "table", *map(str, arguments)])
    return ended.value.code


def test_the_figures_of_a_run(written, page):
    records = [
        record("fused", 4.0),
        record("eager", 12.0),
        record("compile", 6.0),
        record("inf_cl", None, status="oom"),
        record("fused", 0.5, op="grouping", fraction=0.1),
        record("fused", 1.0, direction="forward"),
    ]
    assert table(written(records), "--page", page) == ExitCode.OK
    lines = read_section(page, SECTION).splitlines()
    assert lines[0].startswith("Made Up GPU, PyTorch 2.11, Triton 3.6, commit abcdef012345;")
    assert lines[4] == (
        "| infonce | big | bfloat16 | 4 ms | 500 TFLOP/s | 50.0% (product) | 3 MiB | "
        "3× | 1.5× | oom |"
    )
    assert "| 500 µs | 2 TB/s | 25.0% (copy) |" in lines[5]
    assert len(lines) == 6
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("-->\nafter\n")


def test_a_peer_without_a_figure_is_told_and_a_stopped_run_too(written):
    records = [record("fused", 4.0), record("eager", None, status="oom")]
    records += [record("fused", 4.0, op="grounding"), record("eager", 8.0, op="grounding")]
    text = gpu_section([read_results(written(records, complete=False))])
    assert "| 3 MiB | oom |" in text
    assert "stopped before its end" in text


def test_check_sees_a_page_that_says_otherwise(written, page):
    path = written([record("fused", 4.0)])
    assert table(path, "--page", page, "--check") == ExitCode.REGRESSION
    assert "old" in page.read_text()
    assert table(path, "--page", page) == ExitCode.OK
    assert table(path, "--page", page, "--check") == ExitCode.OK


def test_without_any_gpu_the_section_says_so(written, page):
    assert gpu_section([]) == NOTHING
    cpu = written([record("fused", 4.0)], environment={"cpu": "small"})
    assert table(cpu, "--page", page) == ExitCode.OK
    assert read_section(page, SECTION) == NOTHING


def test_the_readme_tells_what_the_result_files_do():
    assert table("--page", ROOT / "README.md", "--check") == ExitCode.OK


def test_a_page_without_the_marks_is_refused(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("no marks\n")
    with pytest.raises(ValueError, match="put <!-- gpu figures -->"):
        write_section(path, SECTION, "text")
    assert path.read_text() == "no marks\n"
