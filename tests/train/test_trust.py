"""A resume executes nothing that a checkpoint holds, and notices what was exchanged."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch

from svilm_fast.train.checkpoint import TrainerState, load_checkpoint, save_checkpoint
from svilm_fast.train.errors import CheckpointError
from svilm_fast.train.loaded_run import load_run
from svilm_fast.train.manifest import write_manifest
from svilm_fast.train.session import Start, train_as_rank
from svilm_fast.train.trust import check_owner


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_pickled_program_is_refused_in_every_file(
    make_engine, tmp_path: Path, stage: int
) -> None:
    engine = make_engine(f"deepspeed.zero_stage={stage}")
    folder = save_checkpoint(engine, tmp_path, TrainerState(1, {}), keep=1)
    marker = tmp_path / "executed"
    pickled = sorted(folder.glob("*.pt"))
    assert pickled
    for path in pickled:
        good = path.read_bytes()
        for harmful in (lambda p: torch.save({"module": Touch(marker)}, p), _plain_pickle(marker)):
            harmful(path)
            write_manifest(folder)
            with pytest.raises(CheckpointError, match="nothing in it was executed"):
                load_checkpoint(engine, tmp_path)
        path.write_bytes(good)
    write_manifest(folder)
    assert load_checkpoint(engine, tmp_path) is not None
    assert not marker.exists()


def _plain_pickle(marker: Path):
    return lambda path: path.write_bytes(pickle.dumps(Touch(marker)))


def test_a_folder_that_others_write_to_needs_trust(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"")
    check_owner(tmp_path, trust=False)
    (tmp_path / "weights").chmod(0o666)
    with pytest.raises(CheckpointError, match=r"weights may .* \(everybody may write .* --trust"):
        check_owner(tmp_path, trust=False)
    check_owner(tmp_path, trust=True)
    (tmp_path / "weights").chmod(0o644)
    tmp_path.chmod(stat.S_IRWXU | stat.S_IWOTH)
    with pytest.raises(CheckpointError, match="everybody may write to it"):
        check_owner(tmp_path, trust=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_folder_of_another_user_needs_trust(make_engine, tmp_path: Path) -> None:
    engine = make_engine()
    folder = save_checkpoint(engine, tmp_path, TrainerState(1, {}), keep=1)
    os.chown(folder / "trainer_state.json", 12345, -1)
    with pytest.raises(CheckpointError, match="user 12345 owns it"):
        load_checkpoint(engine, tmp_path)
    assert load_checkpoint(engine, tmp_path, trust=True) is not None


def test_exchanged_token_ids_are_noticed(configure, ranks) -> None:
    config = configure("training.steps=1", "evaluation.at_end=false")
    train_as_rank(config, Start(), ranks)
    root = Path(config.run.dir)
    tokenizer = root / "tokenizer.json"
    good = tokenizer.read_bytes()
    content = json.loads(good)
    words = content["model"]["vocab"]
    first, second = sorted(words, key=words.__getitem__)[-2:]
    words[first], words[second] = words[second], words[first]
    tokenizer.write_text(json.dumps(content))
    longer = configure("training.steps=2", "evaluation.at_end=false")
    with pytest.raises(CheckpointError, match=r"is not the tokenizer that .* restore it with: cp"):
        train_as_rank(longer, Start(resume=True), ranks)
    with pytest.raises(CheckpointError, match="is not the tokenizer that"):
        load_run(root)
    tokenizer.write_bytes(good)
    assert train_as_rank(longer, Start(resume=True), ranks).step == 2
    assert load_run(root).step == 2


def test_a_run_is_read_with_the_configuration_of_its_weights(configure, ranks) -> None:
    config = configure("training.steps=1", "evaluation.at_end=false")
    train_as_rank(config, Start(), ranks)
    root = Path(config.run.dir)
    written = (root / "config.yaml").read_text()
    (root / "config.yaml").write_text(written.replace("batch_size: 4", "batch_size: 3"))
    assert load_run(root).config == config
    (root / "portable" / "config.yaml").write_text(
        written.replace("batch_size: 4", "batch_size: 3")
    )
    with pytest.raises(CheckpointError, match=r"config\.yaml has changed since it was written"):
        load_run(root)


def test_a_resume_prints_what_changed_and_what_that_means(configure, ranks, capsys) -> None:
    shared = ("evaluation.at_end=false", "training.steps=2")
    train_as_rank(configure(*shared, "training.stop_after_steps=1"), Start(), ranks)
    capsys.readouterr()
    changed = configure(*shared, "optimizer.lr=0.5", "run.name=other")
    train_as_rank(changed, Start(resume=True), ranks)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("settings changed since step_00000001:")
    assert lines[start + 1 : start + 4] == [
        "  run.name: demo -> other (does not change the result)",
        f"  optimizer.lr: {configure().optimizer.lr} -> 0.5 (changes the result)",
        "  training.stop_after_steps: 1 -> None (does not change the result)",
    ]
