"""The rules of the static table, its diff and its file, on rows made by hand."""

import dataclasses

import pytest

from svilm_fast.bench.static.rules import broken_rules, differences, with_reasons
from svilm_fast.bench.static.table import KernelRow, read_other_table, read_table, write_table

HEALTHY = KernelRow(
    op="infonce",
    variant="bf16 D=512",
    kernel="infonce_fwd_kernel",
    target="sm_90",
    warps=8,
    registers=122,
    spill_bytes=0,
    local_accesses=0,
    shared_bytes=98304,
    shared_limit=232448,
    tensor_instructions="HGMMA:4",
    half_precision_dot=True,
    tf32=False,
    loop_stores=0,
    fp64=0,
    atomics=0,
    wide_loads=24,
    loads=24,
    blocks_per_sm=2,
)


def test_a_healthy_row_breaks_no_rule():
    assert broken_rules(HEALTHY) == []


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("spills", {"spill_bytes": 8}),
        ("spills", {"local_accesses": 2}),
        ("fp64", {"fp64": 1}),
        ("atomics", {"atomics": 1}),
        ("shared", {"shared_bytes": 232449}),
        ("occupancy", {"blocks_per_sm": 0}),
        ("tensor_cores", {"tensor_instructions": "HMMA:64"}),
        ("tensor_cores", {"tensor_instructions": ""}),
        ("loop_stores", {"loop_stores": 4}),
        ("structure", {"bound": "not modelled: 1 loops inside a tile, 0 declared"}),
        ("products", {"products_percent": 120}),
        ("tf32", {"tf32": True}),
        ("alignment", {"wide_loads": 0}),
    ],
)
def test_each_rule_complains_and_a_written_reason_excuses_only_it(rule, change):
    row = dataclasses.replace(HEALTHY, **change)
    assert [text.startswith(f"[{rule}]") for text in broken_rules(row)] == [True]
    assert broken_rules(dataclasses.replace(row, reason=f"{rule}: known and measured")) == []
    other = "fp64" if rule != "fp64" else "spills"
    assert broken_rules(dataclasses.replace(row, reason=f"{other}: something else")) != []


def test_differences_name_what_changed():
    changed = dataclasses.replace(HEALTHY, registers=255, spill_bytes=16)
    added = dataclasses.replace(HEALTHY, variant="fp16 D=512")
    lines = differences([HEALTHY], [changed, added])
    assert lines[0].startswith("+ infonce | fp16 D=512")
    assert "registers 122 -> 255" in lines[1]
    assert "spill_bytes 0 -> 16" in lines[1]
    assert differences([HEALTHY, added], [HEALTHY])[0].startswith("- infonce | fp16 D=512")
    assert differences([HEALTHY], [HEALTHY]) == []


def test_reasons_are_carried_over_and_are_no_difference():
    explained = dataclasses.replace(HEALTHY, reason="loop_stores: row sums")
    assert with_reasons([HEALTHY], [explained]) == [explained]
    assert differences([explained], [HEALTHY]) == []


def test_a_table_survives_the_round_trip(tmp_path):
    path = tmp_path / "table.csv"
    rows = [
        dataclasses.replace(
            HEALTHY, reason="spills: a, comma", copy_distances="38:1 47:2", clocks="3/2/1"
        ),
        HEALTHY,
    ]
    write_table(rows[:1], path)
    assert read_table(path) == rows[:1]


def test_the_first_table_of_a_version_takes_the_newest_other_ones_reasons(tmp_path):
    assert read_other_table(tmp_path / "triton-3.6.0.csv") == []
    for version, reason in (("3.9.0", "old"), ("3.10.1", "new"), ("3.6.0", "its own")):
        rows = [dataclasses.replace(HEALTHY, reason=f"loop_stores: {reason}")]
        write_table(rows, tmp_path / f"triton-{version}.csv")
    [row] = read_other_table(tmp_path / "triton-3.6.0.csv")
    assert row.reason == "loop_stores: new"


def test_a_missing_or_torn_table_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="--write"):
        read_table(tmp_path / "absent.csv")
    path = tmp_path / "torn.csv"
    write_table([HEALTHY], path)
    path.write_text(path.read_text().replace("122", "many"))
    with pytest.raises(ValueError, match="--write"):
        read_table(path)
