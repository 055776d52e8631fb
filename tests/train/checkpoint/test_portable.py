"""The portable checkpoint crosses ZeRO stages with weights, moments and step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from svilm_fast.core.errors import CheckpointError
from svilm_fast.train.checkpoint.portable import (
    load_masters,
    load_moments,
    load_weights,
    save_portable,
)
from svilm_fast.train.checkpoint.portable_files import _before, _finish_replacing
from svilm_fast.train.checkpoint.saved_state import read_portable_state
from svilm_fast.train.folder.manifest import write_manifest


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 3), (3, 2), (2, 0)])
def test_a_run_goes_on_in_another_stage(
    make_engine, batch_of, tmp_path: Path, source: int, target: int, rule: str
) -> None:
    shared = (f"optimizer.name={rule}", "deepspeed.persistence_elements=0")
    first = make_engine(f"deepspeed.zero_stage={source}", *shared, dropout=0.0)
    for step in range(3):
        first.step(batch_of(step), 0.02)
    save_portable(first, tmp_path / "portable", 3, {"position": 24})
    second = make_engine(
        f"deepspeed.zero_stage={target}",
        *shared,
        dropout=0.0,
        seed=5,
        prepare=lambda model: load_weights(model, tmp_path / "portable"),
    )
    load_moments(second, tmp_path / "portable")
    for step in range(3, 7):
        wanted = float(first.step(batch_of(step), 0.02).loss)
        assert float(second.step(batch_of(step), 0.02).loss) == pytest.approx(wanted, rel=1e-6)


def test_weights_are_fp32_also_when_parameters_are_bf16(make_engine, batch_of, tmp_path) -> None:
    engine = make_engine("training.precision=bf16")
    half = {name: value.bfloat16() for name, value in batch_of(0).items()}
    engine.step(half, 1e-4)
    save_portable(engine, tmp_path / "portable", 1, {})
    weights = load_file(tmp_path / "portable" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert float(weights["log_scale"].abs()) == pytest.approx(1e-4, rel=1e-2)


def test_another_shape_names_the_parameter_and_both_shapes(make_engine, tmp_path: Path) -> None:
    save_portable(make_engine(width=8), tmp_path / "portable", 1, {})
    model = make_engine(width=6).model
    with pytest.raises(CheckpointError, match=r"'body.0.weight' has shape \[8, 4\].*\[6, 4\]"):
        load_weights(model, tmp_path / "portable")


def test_another_optimizer_is_refused(make_engine, tmp_path: Path) -> None:
    save_portable(make_engine(), tmp_path / "portable", 1, {})
    with pytest.raises(CheckpointError, match=r"set optimizer.name=adamw"):
        load_moments(make_engine("optimizer.name=sgd"), tmp_path / "portable")


def test_damage_and_absence_are_one_line(make_engine, tmp_path: Path) -> None:
    engine = make_engine()
    with pytest.raises(CheckpointError, match="holds no portable checkpoint"):
        load_weights(engine.model, tmp_path / "portable")
    save_portable(engine, tmp_path / "portable", 1, {})
    weights = tmp_path / "portable" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"model.safetensors has changed"):
        load_weights(engine.model, tmp_path / "portable")


@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_with_bf16_parameters_takes_over_fp32_state(
    make_engine, batch_of, tmp_path: Path, stage: int
) -> None:
    first = make_engine("deepspeed.zero_stage=1", dropout=0.0)
    for step in range(2):
        first.step(batch_of(step), 0.02)
    save_portable(first, tmp_path / "fp32", 2, {})
    second = make_engine(
        f"deepspeed.zero_stage={stage}",
        "training.precision=bf16",
        dropout=0.0,
        prepare=lambda model: load_weights(model, tmp_path / "fp32"),
    )
    load_masters(second, tmp_path / "fp32")
    load_moments(second, tmp_path / "fp32")
    save_portable(second, tmp_path / "bf16", 2, {})
    for part in ("model.safetensors", "optimizer.safetensors"):
        wanted, found = (load_file(tmp_path / name / part) for name in ("fp32", "bf16"))
        assert set(found) == set(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    rounded = {name: value.bfloat16() for name, value in batch_of(2).items()}
    assert second.step(rounded, 0.02).applied


def test_a_link_in_its_place_is_refused_and_nothing_behind_it_changes(
    make_engine, tmp_path: Path
) -> None:
    engine = make_engine()
    save_portable(engine, tmp_path / "far", 1, {})
    before = {path.name: path.read_bytes() for path in (tmp_path / "far").iterdir()}
    (tmp_path / "portable").symlink_to(tmp_path / "far")
    with pytest.raises(CheckpointError, match="portable is a symbolic link, which is not followed"):
        save_portable(engine, tmp_path / "portable", 2, {})
    assert {path.name: path.read_bytes() for path in (tmp_path / "far").iterdir()} == before


def test_a_kill_between_two_renames_loses_no_checkpoint(make_engine, tmp_path: Path) -> None:
    engine, folder = make_engine(), tmp_path / "portable"
    save_portable(engine, folder, 1, {})
    (folder / "notes.txt").write_text("mine")
    folder.rename(_before(folder))  # as a kill leaves it
    _finish_replacing(folder)
    assert read_portable_state(folder)["step"] == 1
    folder.rename(_before(folder))
    save_portable(engine, folder, 2, {})
    assert read_portable_state(folder)["step"] == 2
    assert (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["portable"]


def test_a_foreign_folder_with_the_name_of_a_draft_stays(make_engine, tmp_path: Path) -> None:
    draft = tmp_path / ".portable.tmp"
    draft.mkdir()
    (draft / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds thesis\.tex, which no checkpoint save wrote"):
        save_portable(make_engine(), tmp_path / "portable", 1, {})
    assert (draft / "thesis.tex").read_text() == "mine"


def test_a_draft_that_a_kill_left_is_replaced(make_engine, tmp_path: Path) -> None:
    engine, draft = make_engine(), tmp_path / ".portable.tmp"
    draft.mkdir()
    # What safetensors and we write before the rename.
    for name in (".tmpbcDjaR", "model.safetensors", ".state.json.4711.tmp"):
        (draft / name).write_bytes(b"half")
    save_portable(engine, tmp_path / "portable", 1, {})
    assert [path.name for path in tmp_path.iterdir()] == ["portable"]


def test_an_older_checkpoint_goes_only_when_the_newer_one_is_whole(
    make_engine, tmp_path: Path
) -> None:
    engine, folder = make_engine(), tmp_path / "portable"
    save_portable(engine, folder, 1, {})
    folder.rename(_before(folder))
    folder.mkdir()
    _finish_replacing(folder)
    assert read_portable_state(folder)["step"] == 1
    (folder / "tokenizer.json").write_text("mine")
    save_portable(engine, folder, 2, {})
    assert (folder / "tokenizer.json").read_text() == "mine"


def test_what_cannot_move_to_the_newer_checkpoint_is_named_and_stays(
    make_engine, tmp_path: Path
) -> None:
    engine, folder = make_engine(), tmp_path / "portable"
    save_portable(engine, folder, 1, {})
    before = _before(folder)
    before.mkdir()
    (before / "listed").write_text("")
    write_manifest(before)
    (before / "state.json").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds state\.json, which no checkpoint save wrote"):
        save_portable(engine, folder, 2, {})
    assert (before / "state.json").read_text() == "mine"
    assert read_portable_state(folder)["step"] == 1


def test_a_file_in_its_place_is_refused(make_engine, tmp_path: Path) -> None:
    (tmp_path / "portable").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file, but a folder is needed here"):
        save_portable(make_engine(), tmp_path / "portable", 1, {})
    assert (tmp_path / "portable").read_text() == "mine"
