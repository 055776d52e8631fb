"""`svilm data inspect`: facts that are right, and a contact sheet that replaces no other file."""

from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from svilm_fast.cli import app
from svilm_fast.data import inspect
from svilm_fast.data.config import DataConfig
from svilm_fast.data.samples import open_split

BROKEN = {3: {"mp4": b"broken"}, 5: {"json": b"{"}}


@pytest.fixture
def table(make_shards):
    return open_split(DataConfig(train=str(make_shards(12, replace=BROKEN))), "train", nouns=True)


def _text(table, looks):
    facts = inspect.caption_facts(table, 0)
    console = Console(file=StringIO(), width=200)
    console.print(inspect.facts_table(table, facts, looks, "title"))
    return console.file.getvalue()


def test_the_facts_are_those_of_the_data(table):
    looks = inspect.look_at(table, list(range(11)), DataConfig(), frames=3, short_side=16)
    assert [look.id for look in looks if look.error] == ["s0003"]
    good = looks[0]
    assert (good.total, good.size, good.frames.shape) == (12, (40, 32), (3, 16, 20, 3))
    assert good.seconds == pytest.approx(1.5, abs=1e-6)
    text = _text(table, looks)
    for line in (
        r"11 usable, 1 refused",
        "1 x bad sample json; for example shard-000001.tar/s0005",
        "11 videos decoded, 1 failure",
        "s0003: undecodable video",
        "40 x 32 (10)",
        "frames per second",
    ):
        assert line in text, text


def test_draws_are_distinct_repeatable_and_follow_the_seed(table):
    first = inspect.drawn(table, 5, 0)
    assert first == inspect.drawn(table, 5, 0) == sorted(set(first))
    assert first != inspect.drawn(table, 5, 1)
    assert inspect.drawn(table, 50, 0) == list(range(11))


def test_words_and_nouns_are_counted_per_caption(make_shards):
    captions = ["a red dog and a blue cat", "a dog", "one two three four"]
    nouns = [["dog", "cat"], ["dog"], []]
    data = json.dumps({"caption": captions, "nouns": nouns}).encode()
    folder = make_shards(1, replace={0: {"json": data}})
    table = open_split(DataConfig(train=str(folder)), "train", nouns=True)
    facts = inspect.caption_facts(table, 0)
    assert facts.per_sample.tolist() == [3]
    assert facts.words.tolist() == [7, 2, 4]
    assert facts.nouns.tolist() == [2, 1, 0]
    assert facts.frequent == [("dog", 2), ("cat", 1)]


def test_the_sheet_holds_the_frames_and_odd_captions(table, tmp_path, make_shards):
    data = json.dumps({"caption": r"costs $5 and $x_{2}$ \x1b[31m"}).encode()
    odd = open_split(DataConfig(train=str(make_shards(2, replace={0: {"json": data}}))), "train")
    looks = inspect.look_at(odd, [0, 1], DataConfig(), frames=4, short_side=32)
    path = tmp_path / "sheet.png"
    inspect.check_sheet(path)
    inspect.draw_sheet(looks, path, "title")
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    # The clips become brighter from frame to frame.
    row = picture[picture.shape[0] // 3, : int(0.5 * picture.shape[1])]
    assert len({tuple(pixel) for pixel in row.tolist()}) > 4
    inspect.check_sheet(path)  # an earlier sheet may be replaced


def test_the_command_prints_and_refuses_other_files(make_shards, tmp_path):
    folder = str(make_shards(4))
    other = tmp_path / "other.png"
    other.write_bytes(b"a picture")
    run = CliRunner().invoke
    refused = run(app, ["data", "inspect", folder, "--sheet", str(other)])
    assert refused.exit_code != 0
    assert "not an earlier result" in str(refused.exception) + refused.output
    assert other.read_bytes() == b"a picture"
    for sheet, message in (("x.jpg", "must end in .png"), ("no/x.png", "does not exist")):
        refused = run(app, ["data", "inspect", folder, "--sheet", str(tmp_path / sheet)])
        assert message in str(refused.exception) + refused.output
    refused = run(app, ["data", "inspect", folder, "--captions", "finest"])
    assert "'coarse', 'fine', 'fused' or 'none'" in str(refused.exception) + refused.output
    done = run(app, ["data", "inspect", folder, "--clips", "2"])
    assert done.exit_code == 0
    assert "4 usable, 0 refused" in done.output
