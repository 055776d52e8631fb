"""A resume executes nothing that a checkpoint holds, and notices what was exchanged."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from svilm_fast.cli import app
from svilm_fast.core.errors import CheckpointError, ConfigError
from svilm_fast.train.checkpoint.portable import (
    load_average,
    load_moments,
    load_weights,
    save_portable,
)
from svilm_fast.train.checkpoint.store import TrainerState, load_checkpoint, save_checkpoint
from svilm_fast.train.folder.manifest import MANIFEST, write_manifest
from svilm_fast.train.folder.trust import check_owner
from svilm_fast.train.run.loaded_run import load_run
from svilm_fast.train.run.session import Start, train_as_rank

FOREIGN_JSON = b'{"step": 1}'


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_pickled_program_is_refused_in_every_file(
    make_engine, batch_of, tmp_path: Path, stage: int
) -> None:
    engine = make_engine(f"deepspeed.zero_stage={stage}", "ema.decay=0.9")
    engine.step(batch_of(0), 0.02)
    engine.ema.update(1)
    place = tmp_path / "checkpoints"
    folder = save_checkpoint(engine, place, TrainerState(1, {}), keep=1)
    marker = tmp_path / "executed"
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        for harmful in (lambda p: torch.save({"module": Touch(marker)}, p), _plain_pickle(marker)):
            harmful(path)
            if path.name != MANIFEST:
                write_manifest(folder)
            with pytest.raises(CheckpointError, match=r"nothing in it was executed|passes verif"):
                load_checkpoint(engine, place)
            # It does not read the generators' state.
            with contextlib.suppress(CheckpointError):
                call("convert", "--run", tmp_path, "--overwrite")
            call("info", tmp_path)
        path.write_bytes(good)
        write_manifest(folder)
    assert load_checkpoint(engine, place) is not None
    assert call("convert", "--run", tmp_path, "--overwrite") == 0
    assert not marker.exists()


def call(*arguments: object) -> int:
    result = CliRunner().invoke(app, ["ckpt", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_other_tensors_than_those_that_were_saved_are_refused(
    make_engine, batch_of, tmp_path: Path, stage: int
) -> None:
    engine = make_engine(f"deepspeed.zero_stage={stage}", "ema.decay=0.9")
    engine.step(batch_of(0), 0.02)
    engine.ema.update(1)
    place = tmp_path / "checkpoints"
    folder = save_checkpoint(engine, place, TrainerState(1, {}), keep=1)
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        for content in (b"", b"[" * 100_000, b'"text"', b"null", b"\xff" * 99, _foreign(path)):
            path.write_bytes(content)
            if path.name != MANIFEST:
                write_manifest(folder)
            if path.name.startswith("data_rank") and content == FOREIGN_JSON:
                continue  # an object, whose values the loader checks
            with pytest.raises(CheckpointError) as caught:
                load_checkpoint(engine, place)
            assert "\n" not in str(caught.value)
            if path.name.startswith("random_rank"):
                continue  # no part of a portable checkpoint
            with pytest.raises(CheckpointError) as caught:
                call("convert", "--run", tmp_path, "--overwrite")
            assert "\n" not in str(caught.value)
        path.write_bytes(good)
        write_manifest(folder)


def _foreign(path: Path) -> bytes:
    """Return what is a file of the same kind, with other content."""
    if path.suffix == ".pt":
        buffer = io.BytesIO()
        torch.save({"module": {"other": torch.ones(3)}, "optimizer": 7}, buffer)
        return buffer.getvalue()
    if path.suffix == ".safetensors":
        return safetensors.torch.save({"other": torch.ones(3)}, {"numpy": "[]", "python": "7"})
    return FOREIGN_JSON


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"]
)
def test_a_portable_checkpoint_with_other_content_is_refused(
    make_engine, batch_of, tmp_path: Path, name: str
) -> None:
    engine = make_engine("ema.decay=0.9")
    engine.step(batch_of(0), 0.02)
    engine.ema.update(1)
    folder = tmp_path / "portable"
    save_portable(engine, folder, 1, {})
    marker = tmp_path / "executed"
    _plain_pickle(marker)(folder / name)
    for content in (None, b"", b"null", b"[" * 100_000, _foreign(folder / name)):
        if content is not None:
            (folder / name).write_bytes(content)
        write_manifest(folder)
        with pytest.raises(CheckpointError) as caught:  # noqa: PT012 (which one reads the file)
            load_weights(engine.model, folder, average=True)
            load_moments(engine, folder)
            load_average(engine, folder)
        assert "\n" not in str(caught.value)
    assert not marker.exists()


def _plain_pickle(marker: Path):
    return lambda path: path.write_bytes(pickle.dumps(Touch(marker)))


def test_a_folder_that_others_write_to_needs_trust(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"")
    check_owner(tmp_path, trust=False)
    (tmp_path / "weights").chmod(0o666)
    with pytest.raises(CheckpointError, match=r"weights may .* \(everyone can write .* --trust"):
        check_owner(tmp_path, trust=False)
    check_owner(tmp_path, trust=True)
    (tmp_path / "weights").chmod(0o644)
    tmp_path.chmod(stat.S_IRWXU | stat.S_IWOTH)
    with pytest.raises(CheckpointError, match="everyone can write to it"):
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


def test_weights_come_with_their_tokenizer(configure, ranks, tmp_path: Path) -> None:
    short = ("training.steps=1", "evaluation.at_end=false")
    first = configure(*short)
    train_as_rank(first, Start(), ranks)
    portable = Path(first.run.dir) / "portable"
    content = json.loads((portable / "tokenizer.json").read_text())
    other = tmp_path / "other.json"
    words = content["model"]["vocab"]
    last, before = sorted(words, key=words.__getitem__)[-1], "!"
    words[last], words[before] = words[before], words[last]
    other.write_text(json.dumps(content))
    named = configure(*short, f"data.tokenizer.path={other}", run="named")
    for start in (Start(init_from=portable), Start(weights_from=portable)):
        with pytest.raises(ConfigError, match="tokens mean other words; set"):
            train_as_rank(named, start, ranks)
    # Other captions would train another tokenizer.
    fewer = (*short, "training.global_batch=4", f"data.train={first.data.val}")
    other_data = configure(*fewer, run="other_data")
    train_as_rank(other_data, Start(weights_from=portable), ranks)
    kept = Path(other_data.run.dir) / "tokenizer.json"
    assert kept.read_bytes() == (portable / "tokenizer.json").read_bytes()


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
