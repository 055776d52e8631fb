"""third_party.log is the run's own file; a file of that name that it did not write stays."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from svilm_fast.core.third_party import third_party_log
from svilm_fast.data.dataset import prepare_tokenizer
from svilm_fast.data.samples import open_split
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.folder import prepare as run_folder
from svilm_fast.train.folder.ownership import foreign, listed


@pytest.fixture
def open_run(configure, ranks):
    """Opens the run folder as a run does, while another package logs before and after."""
    config = configure("training.steps=1")
    tokenizer = prepare_tokenizer(config.data, open_split(config.data, "train"))
    files = RunFiles(Path(config.run.dir))

    def run(*, fresh: bool) -> RunFiles:
        files.root.mkdir(parents=True, exist_ok=True)
        logger = logging.getLogger("otherpackage")
        logger.setLevel(logging.INFO)
        with third_party_log():
            logger.info("before")
            run_folder.open_folder(files, config, tokenizer, ranks, fresh=fresh)
            logger.info("after")
        return files

    return run


def test_the_log_is_listed_and_replaced_by_a_fresh_run(open_run) -> None:
    for _ in range(2):
        files = open_run(fresh=True)
        assert [line.split(": ")[1] for line in files.third_party.read_text().splitlines()] == [
            "before",
            "after",
        ]
        assert "third_party.log" in listed(files)
        assert files.third_party not in foreign(files)


def test_a_resumed_run_appends_to_its_log(open_run) -> None:
    open_run(fresh=True)
    assert len(open_run(fresh=False).third_party.read_text().splitlines()) == 4


@pytest.mark.parametrize("linked", [False, True])
def test_a_file_that_the_run_did_not_write_stays(open_run, tmp_path: Path, linked, caplog) -> None:
    files = open_run(fresh=True)
    files.third_party.unlink()
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    if linked:
        files.third_party.symlink_to(mine)
    else:
        files.third_party.write_text("mine")
        kept = [line for line in files.owned.read_text().splitlines() if "third_party" not in line]
        files.owned.write_text("\n".join(kept) + "\n")
    open_run(fresh=False)
    assert files.third_party.read_text() == mine.read_text() == "mine"
    assert "third_party.log does not belong to this run" in caplog.text
