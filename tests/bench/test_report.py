"""`svilm bench report`: one file with every record in it, drawn from GPU and CPU results."""

import json
import re

import matplotlib.pyplot as plt
import pytest

from svilm_fast.bench.gpu.constants import CONSTANTS, FILE, MeasuredConstant, write_comparisons
from svilm_fast.bench.report.batch_scaling import families
from svilm_fast.bench.report.history import change_points, read_history, series
from svilm_fast.bench.report.page import build_page, facts_of, sections_of
from svilm_fast.bench.report.peer_comparison import compared_cases, draw_comparison, ratios_to_eager
from svilm_fast.bench.report.roofline import draw_roofline, has_roofline
from svilm_fast.bench.run.file import read_results
from svilm_fast.cli import main
from svilm_fast.report.theme import LIGHT


@pytest.fixture
def records(gpu_file):
    return list(read_results(gpu_file()).records.values())


def test_the_page_holds_every_record_and_loads_nothing(gpu_file, tmp_path, capsys):
    page, pictures = tmp_path / "bench.html", tmp_path / "png"
    older = [gpu_file(f"old/{n}.json", time=f"2025-01-0{n}", commit=f"c{n}") for n in range(1, 4)]
    gpu_file("old/other.json", fingerprint="beef")
    arguments = ["--out", str(page), "--png", str(pictures), "--history", str(older[0].parent)]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "report", str(gpu_file()), *arguments])
    assert ended.value.code == 0
    text = page.read_text()
    assert re.findall(r"""(?:src|href|srcset)=["'](?!#|data:)""", text) == []
    assert "url(" not in text
    assert "<script" not in text
    for told in ("Made-up GPU", "790 TFLOP/s", "0123456789ab", "1980 MHz", "f00d", "no xformers"):
        assert told in text
    assert "ValueError: &lt;b&gt;no&lt;/b&gt;" in text
    assert "1 results of other machines were left out" in text
    assert text.count('class="own"') + text.count("<tr><td>") >= 62
    written = {path.name for path in pictures.iterdir()}
    assert written == {"roofline.png", "peers.png", "scaling.png", "history.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.iterdir())
    assert "wrote" in capsys.readouterr().out


def test_a_result_without_ceilings_or_peers_still_makes_a_page(tmp_path):
    record = {
        "id": "data/loader/batch_8/-/-/svilm",
        "suite": "data",
        "status": "ok",
        "median_ms": 12.5,
        "samples_ms": [12.5],
        "rates_per_s": {"clips": 640.0},
    }
    content = {"schema": 1, "environment": {"cpu": "small"}, "ceilings": None, "records": [record]}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(content))
    results = read_results(path)
    assert sections_of(results) == []
    rate = next(constant for constant in CONSTANTS if constant.name == "L2_RATE")
    write_comparisons(tmp_path / FILE, [MeasuredConstant(rate, (7.5e12,) * 3)], {})
    [section] = sections_of(results)
    assert section.notes == ["L2_RATE: assumed 7/8.8/10.5 TB/s, measured 7.5 (7.5 to 7.5): inside"]
    assert section.notes[0] in build_page(results, [section])
    (tmp_path / FILE).unlink()
    page = build_page(results, [])
    assert "12.5 ms" in page
    assert "640 clips/s" in page
    assert "<img" not in page
    assert not has_roofline(list(results.records.values()), results.ceilings)
    with pytest.raises(ValueError, match="no ceilings"):
        draw_roofline(list(results.records.values()), results.ceilings, LIGHT)


def test_the_fused_path_is_what_peers_are_compared_with(records):
    found = compared_cases(records)
    assert [case.own.provider for case in found] == ["fused"] * 4
    largest = next(case for case in found if "65536" in case.title)
    assert largest.peers[-1].status == "oom"
    assert largest.peers[-1].time_ms is None
    times = [record.time_ms for record in largest.peers[:-1]]
    assert times == sorted(times)
    assert len(ratios_to_eager(records)) == 3
    assert min(ratios_to_eager(records)) > 1.5


def test_without_a_fused_figure_the_reference_is_first(records):
    left = [record for record in records if record.provider != "fused"]
    assert {case.own.provider for case in compared_cases(left)} == {"reference"}


def test_ratios_of_turns_come_before_those_of_medians(gpu_file):
    path = gpu_file()
    assert sections_of(read_results(path))[1].notes[0].startswith("The medians were measured one")
    content = json.loads(path.read_text())
    content["ratios"] = [
        {
            "case": "infonce/pairs_1024_dim_512",
            "direction": "both",
            "provider": "eager",
            "ours": "fused",
            "time": 1.75,
        }
    ]
    path.write_text(json.dumps(content))
    results = read_results(path)
    found = compared_cases(list(results.records.values()), results.ratios)
    assert [case.ratios for case in found] == [{"eager": 1.75}, {}, {}, {}]
    drawn = draw_comparison(found, LIGHT)
    assert any(text.get_text().startswith(" 1.8×") for text in drawn.axes[0].texts)
    plt.close(drawn)
    assert (
        sections_of(results)[1]
        .notes[0]
        .startswith("Ratios of times are medians over interleaved rounds")
    )


def test_growth_takes_equal_shapes_at_several_batches(records):
    (family,) = families(records)
    assert family.batches == {1024, 4096, 16384, 65536}
    assert family.sizes == "dim 512, bfloat16"
    assert families([record for record in records if record.batch == 1024]) == []


def test_the_floor_of_a_row_is_the_ceiling_that_binds(records):
    record = next(
        record
        for record in records
        if record.id.endswith("pairs_65536_dim_512/bfloat16/both/fused")
    )
    assert record.binding_ceiling == "product"
    assert record.floor_fraction == pytest.approx(0.62, abs=0.01)
    assert record.intensity == pytest.approx(65536 / 2)


def test_history_is_of_one_machine_in_order_of_time(gpu_file, tmp_path):
    current = read_results(gpu_file("now.json", time="2026-02-01"))
    late = gpu_file("old/a.json", time="2026-01-05", commit="late")
    early = gpu_file("old/b.json", time="2026-01-02", commit="early")
    other = gpu_file("other.json", fingerprint="beef")
    runs, others, skipped = read_history([late, early, other, current.path], current)
    assert [run.environment["commit"] for run in runs][:2] == ["early", "late"]
    assert runs[-1] is current
    assert (others, skipped) == (1, 0)
    assert all(len(values) == 3 for values in series(runs).values())


def test_folders_may_hold_other_files_but_named_files_must_be_results(gpu_file, tmp_path):
    current = read_results(gpu_file("now.json"))
    older = gpu_file("old/a.json")
    memory = older.parent / "memory.json"
    memory.write_text('{"schema": 1, "records": [{"subject": "infonce"}]}')
    runs, _, skipped = read_history([older.parent], current)
    assert (len(runs), skipped) == (2, 1)
    with pytest.raises(ValueError, match="lacks id"):
        read_history([memory], current)


def test_only_words_of_a_status_are_rewritten(gpu_file):
    path = gpu_file()
    content = json.loads(path.read_text())
    content["records"][-1]["status"] = "skipped: open_clip_torch is not installed"
    path.write_text(json.dumps(content))
    page = build_page(read_results(path), [])
    assert "open_clip_torch is not installed" in page
    assert "out of memory" in page


def test_a_narrow_roofline_has_several_rates(records):
    drawn = draw_roofline(records, {"product_flops": 7.9e14, "copy_bytes": 1e12}, LIGHT)
    low, high = drawn.axes[0].get_ylim()
    shown = [tick for tick in drawn.axes[0].get_yticks() if low <= tick <= high]
    plt.close(drawn)
    assert len(shown) > 1


def test_a_point_above_the_ceilings_is_inside_the_picture(records):
    highest = max(
        record.flops_per_s for record in records if record.intensity and record.flops_per_s
    )
    drawn = draw_roofline(records, {"product_flops": highest / 10, "copy_bytes": 1e12}, LIGHT)
    low, high = drawn.axes[0].get_ylim()
    plt.close(drawn)
    assert high > 1.5 * highest
    assert low < min(
        record.flops_per_s for record in records if record.intensity and record.flops_per_s
    )


def test_change_points_are_found_where_the_level_changes():
    steady = [10.0, 10.1, 9.9, 10.05, 9.95, 10.0, 10.1]
    assert change_points(steady) == []
    assert change_points([*steady, *(1.2 * value for value in steady)]) == [7]
    assert change_points([1.0, 2.0]) == []
    assert change_points([3.0] * 4 + [4.0] * 4) == [4]


def test_facts_leave_out_what_is_unknown():
    facts = facts_of({"gpu": None, "cpu": "x", "memory_bytes": 2**30, "packages": {"a": None}})
    assert facts == {"machine and versions": {"cpu": "x", "memory bytes": "1 GiB"}}


def test_a_missing_result_is_a_usage_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "report", str(tmp_path / "absent.json")])
    assert ended.value.code == 2
    assert "svilm bench run" in capsys.readouterr().err
