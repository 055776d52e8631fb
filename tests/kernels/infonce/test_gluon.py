"""The Gluon kernel in the interpreter: its sums under many schedules, and planted bugs."""

from dataclasses import dataclass

import pytest
import torch

from svilm_fast.kernels.backend import interpreted, use_backend
from svilm_fast.kernels.device import A100, assume_traits
from svilm_fast.kernels.infonce.cases import VARIANTS
from svilm_fast.kernels.infonce.fused import forward, gluon_sums, layout
from svilm_fast.kernels.infonce.fused.layout import InfonceTile
from svilm_fast.kernels.launch import Launch, record_launches
from tests.bars import SEED_OFFSET, within
from tests.kernels.gluon_interpreter import interpret
from tests.kernels.gluon_machine import GluonFault

TILE = InfonceTile(128, 16, 16, 4, 4, True)


@dataclass(frozen=True)
class Block:
    """A launch on rows [start, stop) of `rows` videos and 16 texts per column tile."""

    rows: int
    columns: int = 16
    dim: int = 48
    start: int = 0
    offset: int = 10_000
    strip: int = 3
    scale: float = 10.0
    wide: bool = False
    dtype: torch.dtype = torch.float16


# Five products of 64 rows, so both groups come back to a stage of the ring.
MAIN = Block(300)
BLOCKS = {
    "one row": Block(1),
    "less than a product": Block(63),
    "whole tiles": Block(256, 32),
    "one product more": Block(129),
    "ragged columns": Block(200, 5),
    "strips": Block(500, 32, strip=1),
    "last strip of one row": Block(257, strip=1),
    "second chunk": Block(420, start=128, strip=2),
    "products of 128 rows": Block(300, wide=True),
    "ragged products of 128 rows": Block(129, 7, dim=40, wide=True),
    "width within a block": Block(150, dim=40),
    "diagonal": Block(300, 64, offset=0),
    "diagonal in the padding": Block(300, 7, offset=-247),
    "diagonal of a chunk": Block(420, 48, start=128, offset=-250, strip=2),
    "bfloat16": Block(150, dtype=torch.bfloat16, scale=14.0),
}


def expected_sums(videos, texts, block, ragged):
    """Row sums [column tiles, rows] and column sums [strips, columns] in float64.

    NaN where the launch writes nothing: tiles that meet the diagonal, and other column tiles.
    """
    rows, columns = block.rows - block.start, block.columns
    powers = torch.exp2(
        block.scale / torch.log(torch.tensor(2.0, dtype=torch.float64))
        * (videos[block.start :].double() @ texts.double().T - 1) + 100
    )  # fmt: skip
    strips = -(-rows // (block.strip * 128))
    row_sums = torch.full((-(-columns // 16), rows), torch.nan, dtype=torch.float64)
    column_sums = torch.full((strips, columns), torch.nan, dtype=torch.float64)
    for first in range(0, columns, 16):
        if (first + 16 > columns) != ragged:
            continue
        here = slice(first, min(first + 16, columns))
        column_sums[:, here] = 0
        for top in range(0, rows, 128):
            tile = slice(top, min(top + 128, rows))
            partners = range(
                tile.start + block.start + block.offset, tile.stop + block.start + block.offset
            )
            if partners.start < first + 16 and partners.stop > first:
                continue
            row_sums[first // 16, tile] = powers[tile, here].sum(1)
            column_sums[top // 128 // block.strip, here] += powers[tile, here].sum(0)
    return row_sums, column_sums


def close(found, expected, what):
    assert torch.equal(found.isnan(), expected.isnan()), f"{what}: elements written"
    there = ~expected.isnan()
    # The bar of log-sums: README, "Limits".
    within((found - expected)[there].abs(), 2e-5 * expected[there], what)


@pytest.fixture
def check_sums(rows, monkeypatch):
    """`check_sums(block, seed, module)`: raises if the sums are wrong or a schedule has a fault."""

    def check(block, seed=0, module=gluon_sums, stages=2):
        monkeypatch.setattr(module, "DEPTH", 16)
        monkeypatch.setattr(module, "STAGES", stages)
        monkeypatch.setattr(module, "WIDE_STAGES_DIM", 512 if block.wide else 0)
        videos = rows(block.rows, block.dim, 0, block.dtype)
        texts = rows(block.columns, block.dim, 1, block.dtype)
        full, ragged = block.columns // 16, block.columns % 16 != 0
        strips = -(-(block.rows - block.start) // (block.strip * 128))
        logs = []
        for is_ragged, first, tiles in ((False, 0, full), (True, full, int(ragged))):
            found = (
                torch.full((full + ragged, block.rows - block.start), torch.nan),
                torch.full((strips, block.columns), torch.nan),
            )
            with record_launches() as launches:
                module.launch_sums(
                    videos,
                    texts,
                    torch.tensor(block.scale),
                    found,
                    TILE,
                    (block.start, block.rows),
                    first,
                    tiles,
                    block.offset,
                    strips,
                    block.strip,
                    ragged=is_ragged,
                )
            for launch in launches if tiles else ():
                logs += interpret(launch, seed + SEED_OFFSET)
            wanted = expected_sums(videos, texts, block, is_ragged)
            close(found[0], wanted[0], "row sums")
            close(found[1], wanted[1], "column sums")
        return logs

    return check


@pytest.mark.parametrize("name", BLOCKS)
def test_sums_of_ragged_blocks(check_sums, name):
    for seed in range(3):
        check_sums(BLOCKS[name], seed)


@pytest.mark.parametrize("part", range(4))
def test_two_hundred_schedules(check_sums, part):
    for seed in range(50 * part, 50 * part + 50):
        check_sums(MAIN, seed, stages=(2, 3, 4, 5)[part])


def test_the_groups_take_turns(check_sums):
    for seed in range(5):
        (log,) = check_sums(MAIN, seed, stages=5)
        groups = [partition for partition, _ in log]
        steps = [groups[at : at + 3] for at in range(0, len(groups), 3)]
        assert [len(set(three)) for three in steps] == [1] * 5
        assert all(before[0] != after[0] for before, after in zip(steps, steps[1:]))


COPY_WAIT = "mbarrier.wait(freed.index(stage), (copy // STAGES & 1) ^ 1)"
FULL_WAIT = "mbarrier.wait(filled.index(stage), copy // STAGES & 1)"
FREE = "mbarrier.arrive(freed.index((copy - 1) % STAGES), count=1)"
LAST_FREE = "mbarrier.arrive(freed.index((product * STEPS + STEPS - 1) % STAGES), count=1)"
LAST_WAIT = "dots = warpgroup_mma_wait(0, deps=(dots,))"
TURN_WAIT = "mbarrier.wait(turns.index(GROUP), (turn & 1) ^ (1 - GROUP))"
TURN = "mbarrier.arrive(turns.index(1 - GROUP), count=1)"
EXPECT = "mbarrier.expect(filled.index(stage), videos.block_type.nbytes)"
TEXT_WAIT = "mbarrier.wait(text_filled.index(step), 0, pred=product == GROUP)"
SYNCHRONISATION_BUGS = {
    "no wait for a full stage": ({FULL_WAIT: "pass"}, "race"),
    "no wait for the texts": ({TEXT_WAIT: "pass"}, "race"),
    "only group 1 waits for the texts": (
        {TEXT_WAIT: TEXT_WAIT.replace("product == GROUP", "product == 1")}, "race",
    ),
    "no wait for an empty stage": ({COPY_WAIT: "pass"}, "race or barrier"),
    "no arrival at an empty stage": ({FREE: "pass"}, "deadlock"),
    "no arrival at the last empty stage": ({LAST_FREE: "pass"}, "deadlock"),
    "wrong phase of a full stage": ({FULL_WAIT: FULL_WAIT[:-1] + " ^ 1)"}, "race or deadlock"),
    "wrong phase of an empty stage": ({COPY_WAIT: COPY_WAIT.replace(" ^ 1", "")}, "deadlock"),
    "phase that ignores the ring": ({FULL_WAIT: FULL_WAIT.replace("copy // STAGES", "copy")}, "race or deadlock"),
    "freed before the product is waited for": (
        {"warpgroup_mma_wait(1, deps=(dots,))": "warpgroup_mma_wait(2, deps=(dots,))"}, "race",
    ),
    "last stage freed before the wait": (
        {LAST_WAIT: "", LAST_FREE: f"{LAST_FREE}\n        {LAST_WAIT}"}, "race",
    ),
    "sums before the last product ends": ({LAST_WAIT: LAST_WAIT.replace("(0,", "(1,")}, "pending or race"),
    "too few bytes expected": ({EXPECT: EXPECT[:-1] + " // 2)"}, "barrier"),
    "too many bytes expected": ({EXPECT: EXPECT[:-1] + " + 16)"}, "deadlock"),
    "bytes of the texts for the videos": (
        {EXPECT: EXPECT.replace("videos", "texts")}, "barrier",
    ),
    "copy into the next stage": ({"                ring.index(stage),\n            )":
        "                ring.index((stage + 1) % STAGES),\n            )"}, "race"),
    "texts copied for every product": (
        {"pred=product == 0": "pred=product >= 0"}, "race or deadlock",
    ),
    "texts expected and never copied": (
        {"                pred=product == 0,\n": "                pred=product < 0,\n"}, "deadlock",
    ),
    "the turn is not passed on": ({TURN: "pass"}, "deadlock"),
    "the turn is kept": ({TURN: TURN.replace("1 - GROUP", "GROUP")}, "deadlock or barrier or race"),
    "both groups wait for a first turn": (
        {TURN_WAIT: TURN_WAIT.replace(" ^ (1 - GROUP)", "")}, "deadlock",
    ),
    "two arrivals expected at a stage": (
        {"mbarrier.init(freed.index(stage), count=1)": "mbarrier.init(freed.index(stage), count=2)"},
        "deadlock",
    ),
    "no wait for the other group's sums": ({"mbarrier.wait(summed, 0)": "pass"}, "race"),
    "sums announced before they are stored": (
        {"shared_sum.store(total)\n        mbarrier.arrive(summed, count=1)":
         "mbarrier.arrive(summed, count=1)\n        shared_sum.store(total)"}, "race",
    ),
    "a barrier without a count": ({"    mbarrier.init(summed, count=1)\n": ""}, "barrier"),
    "one product too many": (
        {"gl.cdiv(rows, BLOCK_M))": "gl.cdiv(rows, BLOCK_M) + 1)", "(row < stop_row) &": "(row > -1) &"},
        "memory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SYNCHRONISATION_BUGS)
def test_synchronisation_bugs_are_caught_in_every_schedule(check_sums, mutate, name):
    replaced, kind = SYNCHRONISATION_BUGS[name]
    mutant = mutate(gluon_sums, replaced)
    for seed in range(5):
        with pytest.raises(GluonFault) as caught:
            check_sums(MAIN, seed, mutant)
        assert caught.value.kind in kind


VALUE_BUGS = {
    "last product dropped": (MAIN, {"gl.cdiv(rows, BLOCK_M))": "rows // BLOCK_M)"}),
    "last row dropped": (MAIN, {"(row < stop_row)": "(row < stop_row - 1)"}),
    "rows after the chunk's strip": (
        BLOCKS["strips"], {"gl.minimum(strip * TILE_M, stop_row - start_row)": "stop_row - start_row"},
    ),
    "padded columns counted": (BLOCKS["ragged columns"], {"if RAGGED:": "if False:"}),
    "rows of the first product": (MAIN, {"[start_row + product * BLOCK_M,": "[start_row,"}),
    "first slice of the texts": (MAIN, {"[first_column, step * BLOCK_K]": "[first_column, 0]"}),
    "sums of one group": (MAIN, {"total += shared_sum.load(flat)": "pass"}),
    "a product added to the last one": (MAIN, {"use_acc=step > 0": "use_acc=True",
        "dots = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, layout=layout)\n        for step":
        "dots = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, layout=layout) + 1.0\n        for step"}),
    "steps not added": (MAIN, {"use_acc=step > 0": "use_acc=False"}),
    "diagonal counted": (
        BLOCKS["diagonal"], {"((row < first_beside) | (row >= stop_beside))": "(row >= 0)"},
    ),
    "diagonal of whole columns only": (
        BLOCKS["diagonal in the padding"],
        {"gl.minimum(first_column + BLOCK_N - offset,": "gl.minimum(gl.minimum(first_column + BLOCK_N, columns) - offset,"},
    ),
    "diagonal tile's last row": (
        BLOCKS["diagonal"], {"gl.cdiv(stop, TILE_M) * TILE_M, first": "stop, first"},
    ),
    "natural exponent": (MAIN, {" * LOG2_E": ""}),
    "wrong strip": (BLOCKS["strips"], {"gl.cast(number, gl.int64) * columns": "0 * columns"}),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUE_BUGS)
def test_wrong_sums_are_caught(check_sums, mutate, name):
    block, replaced = VALUE_BUGS[name]
    with pytest.raises(AssertionError):
        check_sums(block, 0, mutate(gluon_sums, replaced))


@pytest.fixture
def whole_op(monkeypatch):
    """Lets calls on the CPU take the Gluon kernel in its interpreter; counts its launches."""
    launches = []

    def run(kernel, grid, *args, **meta):
        launches.append(grid)
        interpret(Launch(kernel, grid, args, meta), len(launches) + SEED_OFFSET)

    monkeypatch.setattr(gluon_sums, "launch", run)
    monkeypatch.setattr(forward, "gluon_wanted", lambda _: True)
    monkeypatch.setattr(forward, "FEW_BLOCKS_PER_SM", 0)
    return launches


@pytest.mark.skipif(not interpreted(), reason="runs the other kernels through the interpreter")
@pytest.mark.parametrize(
    ("batch", "dim", "dtype"),
    [(300, 64, torch.float16), (140, 320, torch.bfloat16), (390, 80, torch.float16)],
)
def test_loss_and_gradients_against_float64(check, regime, whole_op, batch, dim, dtype):
    check(*regime("random", batch, dim, dtype))
    assert len(whole_op) == 2  # whole column tiles and the ragged one


@pytest.mark.skipif(not interpreted(), reason="runs the other kernels through the interpreter")
def test_chunks_of_rows_against_float64(check, regime, whole_op, monkeypatch):
    monkeypatch.setattr(layout, "ROW_SUM_BYTES", 1)
    monkeypatch.setattr(layout, "MAX_STRIP_TILES", 1)
    check(*regime("half", 300, 64, torch.float16))
    assert len(whole_op) == 6


def recorded(label, choice):
    """Names of the kernels that a declared variant launches."""
    variant = next(variant for variant in VARIANTS if variant.label == label)
    with use_backend(choice), record_launches() as launches:
        variant.run()
    return [(one.kernel.__name__, one.meta.get("TILES")) for one in launches]


def test_the_choice_replaces_the_launches_beside_the_diagonal_only():
    label = "bf16 D512 B65536"
    plain, gluon = recorded(label, "fused"), recorded(label, "gluon")
    assert {one for one in plain if one not in gluon} == {("sums_kernel", "beside")}
    assert {one for one in gluon if one not in plain} == {("gluon_sums_kernel", None)}
    assert len(plain) == len(gluon)
    assert recorded(label, "auto") == plain


@pytest.mark.parametrize("label", ["bf16 D512 exclude", "bf16 D512 share", "fp32 D256 B1024"])
def test_what_gluon_does_not_take_stays_plain(label):
    assert recorded(label, "gluon") == recorded(label, "fused")


def test_other_gpus_stay_plain():
    with assume_traits(A100):
        assert "gluon_sums_kernel" not in {name for name, _ in recorded("bf16 D512 B8192", "gluon")}
