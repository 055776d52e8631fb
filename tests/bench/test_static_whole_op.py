"""The predicted time of whole ops: sums of launches, products and copies, and the ops' pages."""

import dataclasses

import pytest
import torch

from svilm_fast.bench.generated_section import read_section
from svilm_fast.bench.static import machine
from svilm_fast.bench.static.command import SECTION
from svilm_fast.bench.static.table import RESULTS, read_table
from svilm_fast.bench.static.whole_op import predict, predictions, whole_lines
from svilm_fast.kernels.infonce.fused import backward, layout
from svilm_fast.kernels.launch import launch, note_product
from svilm_fast.kernels.registry import KERNELS, LaunchWork, Target, WholeOp, memory_pass, ops

TABLES = sorted(RESULTS.glob("triton-*.csv"))
NEWEST = RESULTS / "triton-3.7.1.csv"


@pytest.fixture(scope="module")
def rows():
    return read_table(NEWEST)


@pytest.fixture(scope="module")
def found(rows):
    return predictions(rows)


def target_of(op, label):
    [found] = [each for each in ops()[op].whole.targets if each.label == label]
    return found


def infonce(rows, label="D = 512 in 1 GiB"):
    return predict(ops()["infonce"], target_of("infonce", label), rows)


def slower(rows, op, kernel, factor):
    """The rows with `factor` times the clocks of a kernel."""
    return [
        dataclasses.replace(
            row, clocks="/".join(str(factor * int(each)) for each in row.clocks.split("/"))
        )
        if (row.op, row.kernel) == (op, kernel) and row.clocks
        else row
        for row in rows
    ]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_table_predicts_every_target(path):
    found = predictions(read_table(path))
    declared = {
        name: [each.label for each in op.whole.targets] for name, op in ops().items() if op.whole
    }
    assert {name: [each.target for each in some] for name, some in found.items()} == declared
    for each in (each for some in found.values() for each in some):
        assert list(each.total) == sorted(each.total, reverse=True)
        assert all(0 < share < 1.1 for share in each.floor_share), each
        for values in each.parts.values():
            assert list(values) == sorted(values, reverse=True)


def test_the_pages_show_the_figures_of_the_newest_table(found):
    for name, of_op in found.items():
        page = KERNELS / name / "README.md"
        assert read_section(page, SECTION).split("\n") == whole_lines(of_op), (
            f"{name}: run `svilm bench static --recorded --write`"
        )


def test_half_the_rate_of_a_kernel_doubles_its_part_and_lowers_the_share(rows):
    before, after = infonce(rows), infonce(slower(rows, "infonce", "dots_gradient_kernel", 2))
    assert after.parts["dS"].central == pytest.approx(2 * before.parts["dS"].central, rel=0.01)
    assert {part: value for part, value in after.parts.items() if part != "dS"} == {
        part: value for part, value in before.parts.items() if part != "dS"
    }
    added = after.parts["dS"].central - before.parts["dS"].central
    expected = before.floor / (before.total.central + added)
    assert after.floor_share.central == pytest.approx(expected)
    assert after.floor_share.central < before.floor_share.central - 0.1


def test_another_plan_moves_the_share(rows, monkeypatch):
    planned = infonce(rows)
    monkeypatch.setattr(
        backward, "backward_plan", lambda *_: layout.BackwardPlan(rows=6016, splits=1)
    )
    changed = infonce(rows)
    # 94 tiles of a product for 132 SMs, and as many chunks less as rows more per chunk.
    assert changed.products < planned.products
    assert changed.parts["dV"].central > 1.02 * planned.parts["dV"].central
    assert changed.floor_share.central < planned.floor_share.central


def test_a_larger_workspace_needs_fewer_launches(found):
    [small] = [each for each in found["infonce"] if each.target == "D = 256 in 512 MiB"]
    [large] = [each for each in found["infonce"] if each.target == "D = 256 in 2 GiB"]
    assert large.kernels < small.kernels
    assert large.products < small.products
    assert large.floor_share.central > small.floor_share.central


def test_gluon_kernels_change_the_part_that_they_compute(found):
    by_call = {each.target: each for each in found["infonce"]}
    plain, gluon = (by_call[f"D = 512 in 1 GiB{more}"].parts for more in ("", ", Gluon"))
    assert {part for part in plain if plain[part] != gluon[part]} == {"forward", "dS"}
    for part in ("forward", "dS"):
        assert gluon[part].central < 0.8 * plain[part].central


def test_the_floor_is_that_of_the_readme(found):
    flops = 8 * 65536**2 * 512
    assert found["infonce"][0].floor == pytest.approx(flops / 790e12)
    forward, gluon, back, gluon_back = found["grouping"]
    assert forward.floor == gluon.floor == pytest.approx(1.26e9 / 4.3e12, rel=0.01)
    assert back.floor == gluon_back.floor == pytest.approx(2.52e9 / 4.3e12, rel=0.01)


class Kernel:
    """A kernel as far as a recorded launch needs it."""

    def __init__(self, name):
        self.__name__ = name
        self.arg_names = ["tensor", "count"]


def toy(run, **described):
    op = dataclasses.replace(ops()["infonce"], whole=WholeOp((), described))
    sizes = {"videos": 8, "texts": 8, "dim": 16}
    return op, Target("toy", sizes, run, {"tiled": "variant"})


def started(name, grid, *args):
    """A run that starts this kernel."""
    return lambda: launch(Kernel(name), grid, *args, OPTION=3)


def test_programs_fill_whole_waves_of_sms(rows):
    row = dataclasses.replace(
        rows[0], op="infonce", variant="variant", kernel="tiled", clocks="1000/1000/1000",
        blocks_per_sm=1,
    )  # fmt: skip

    def central(programs, tiles):
        work = LaunchWork("all", tiles=tiles)
        op, target = toy(started("tiled", (programs,)), tiled=lambda _: work)
        return predict(op, target, [row]).total.central - machine.LAUNCH_SECONDS.central

    clock = machine.CLOCK_HZ.central
    assert central(1, 1) == pytest.approx(1000 / clock)
    assert central(132, 1) == central(1, 1)
    assert central(133, 1) == pytest.approx(2 * central(132, 1))
    cold = machine.BLOCK_START_CLOCKS.central + machine.TMA_CLOCKS.central
    assert central(132, 16) == pytest.approx((16_000 + cold) / clock)


def test_other_kernels_copies_and_products():
    tensor = torch.empty(1000, 4096, device="meta")
    start = started("pass", (1,), tensor, 7)

    def run():
        start()
        half = tensor.half()
        half.view(-1)
        note_product(torch.empty(128, 256, device="meta"), half[:128], first=True)

    op, target = toy(run, **{"pass": memory_pass("passes")})
    found = predict(op, target, [])
    per_byte, gap = 1 / machine.DRAM_RATE.central, machine.LAUNCH_SECONDS.central
    assert (found.kernels, found.products) == (1, 1)
    assert found.parts["passes"].central == pytest.approx(4 * 4096e3 * per_byte + gap)
    assert found.parts["rest"].central == pytest.approx(6 * 4096e3 * per_byte + gap)
    # Two tiles of 128 x 128 on two SMs are faster than one of 128 x 256.
    [small] = [share for tile, share in machine.LIBRARY_TILES.items() if tile == (128, 128)]
    rate = small * machine.LIBRARY_FLOPS.central / machine.SMS
    seconds = 2 * 128 * 128 * 4096 / rate + 4 * 128 * 256 * per_byte + gap
    assert found.parts["products"].central == pytest.approx(seconds)


def test_sums_that_are_added_to_are_read():
    def seconds(first):
        def run():
            out = torch.empty(4096, 4096, device="meta")
            note_product(out, out[:, :64], first=first)

        return predict(*toy(run), []).total.central

    size = 4 * 4096**2
    assert seconds(False) - seconds(True) == pytest.approx(size / machine.DRAM_RATE.central)


def test_what_is_not_described_or_not_in_the_table_is_an_error():
    start = started("tiled", (1,))
    with pytest.raises(ValueError, match=r"starts tiled, which `whole\.launches` does not"):
        predict(*toy(start), [])
    with pytest.raises(LookupError, match=r"no clocks of infonce \| variant \| tiled"):
        predict(*toy(start, tiled=lambda _: LaunchWork("all", tiles=1)), [])


def test_the_assumed_rate_of_the_library_is_that_of_the_plan():
    assert machine.LIBRARY_FLOPS.central == layout.PRODUCT_RATE
    assert layout.PRODUCT_TILE in machine.LIBRARY_TILES
