"""The static model beside published speeds, and its page."""

import re
from pathlib import Path

import pytest

from svilm_fast.bench.generated_section import read_section
from svilm_fast.bench.static import machine
from svilm_fast.bench.static.calibration import Published, comparison_lines, comparisons
from svilm_fast.bench.static.table import RESULTS, read_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "static-gate.md"
NEWEST = RESULTS / "triton-3.7.1.csv"
LARGEST_ERROR_PERCENT = 25


def test_the_error_is_the_distance_from_the_published_range():
    published = Published(400, 500, "someone")
    assert [published.error_percent(value) for value in (400, 450, 500)] == [0, 0, 0]
    assert (published.error_percent(300), published.error_percent(600)) == (-25, 20)
    assert (published.text, Published(502, 502, "").text) == ("400 to 500", "502")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("triton-*.csv")), ids=lambda path: path.stem)
def test_every_table_holds_the_calibration(path):
    found = comparisons(read_table(path))
    assert len(found) == 5
    for each in found:
        assert list(each.predicted) == sorted(each.predicted)
        assert abs(each.error_percent) <= LARGEST_ERROR_PERCENT, each
    inside = [
        each for each in found if each.predicted[0] <= each.published.most
        and each.published.least <= each.predicted[2]
    ]  # fmt: skip
    assert inside == found


def test_the_page_shows_the_calibration_of_the_newest_table():
    assert read_section(PAGE, "calibration").split("\n") == comparison_lines(read_table(NEWEST))


def test_the_page_names_every_assumed_number():
    rows = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| ([^|]+?) \|", PAGE.read_text(), re.MULTILINE))
    units = {"CLOCK_HZ": 1e9, "LAUNCH_SECONDS": 1e-6}
    units |= dict.fromkeys(("L2_RATE", "DRAM_RATE", "SUSTAINED_FLOPS", "LIBRARY_FLOPS"), 1e12)
    brackets = {
        name: value for name, value in vars(machine).items() if isinstance(value, machine.Bracket)
    }
    assert set(rows) == {*brackets, "TENSOR_EFFICIENCY"}
    for name, bracket in brackets.items():
        shown = [float(each) for each in re.findall(r"[\d.]+", rows[name])]
        assert shown == [pytest.approx(value / units.get(name, 1.0)) for value in bracket], name
    assert float(rows["TENSOR_EFFICIENCY"]) == machine.TENSOR_EFFICIENCY


def test_the_page_names_every_column_of_the_model():
    from dataclasses import fields

    from svilm_fast.bench.static.structure import Structure

    page = PAGE.read_text()
    assert [each.name for each in fields(Structure) if f"`{each.name}`" not in page] == []
