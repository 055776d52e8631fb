"""`svilm export` writes a complete folder with a card that states data, protocol and score."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

import svilm_fast
from svilm_fast.cli import app
from svilm_fast.core.errors import UserError
from svilm_fast.inference import folder as model_folder
from svilm_fast.train.checkpoint.portable_files import PortableState, describe_state, write_portable
from svilm_fast.train.config.options import Weights
from svilm_fast.train.run.export import export_run
from svilm_fast.train.run.loaded_run import load_run
from svilm_fast.train.run_app import run_app
from tests.untrained_run import make_untrained_run


def test_the_folder_holds_weights_settings_tokenizer_and_card(run, exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    expected = load_run(run).model.encoder.state_dict()
    found = load_file(exported / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    modes = {path.stat().st_mode for path in exported.iterdir()}
    assert len(modes) == 1, "all files can be read by the same users"


def test_no_path_of_this_machine_is_exported(run, exported):
    for name in ("config.json", "README.md"):
        assert str(run.parent) not in (exported / name).read_text()


def test_the_card_states_licence_data_protocol_score_and_versions(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder = copy / "evaluation"
    folder.mkdir()
    result = {"protocol": {"set": "world", "videos": 6}, "manifest": "ab" * 32}
    (folder / "nameless.json").write_text(json.dumps(result))
    (folder / "old_step_00000009.json").write_text(json.dumps(result))
    result["extra"] = {"step": 0, "weights": "raw"}
    (folder / "test_x.json").write_text(json.dumps(result))
    (folder / "test_x.txt").write_text("R@1 16.7\n")
    other = {"protocol": "p", "extra": {"step": 0, "weights": "ema"}}
    (folder / "averaged.json").write_text(json.dumps(other))
    (folder / "list.json").write_text("[]")
    lines = export_run(copy, tmp_path / "model", licence="apache-2.0")
    assert lines[-1].endswith("without naming theirs: averaged, list, nameless, old_step_00000009")
    text = (tmp_path / "model" / "README.md").read_text()
    front, body = re.fullmatch(r"---\n(.*?)---\n(.*)", text, re.S).groups()
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    digest = hashlib.sha256((folder / "test_x.json").read_bytes()).hexdigest()
    for part in ("set: world, videos: 6", "ab" * 32, digest, "R@1 16.7", "run-world/train"):
        assert part in body
    assert re.search(r"\| torch \| \d+\.\d+", body)
    assert "old_step" not in body
    assert svilm_fast.load_pretrained(tmp_path / "model").card == text


def test_a_card_without_licence_says_so(exported):
    text = (exported / "README.md").read_text()
    assert "license" not in text.split("---")[1]
    assert "## Licence\n\nnot stated" in text


def test_a_folder_with_anything_in_it_is_not_touched(run, tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        export_run(run, out)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (out / "mine.txt").read_text() == "mine"


def test_places_that_cannot_be_replaced(run, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    export_run(run, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    svilm_fast.load_pretrained(tmp_path / "empty")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="is the current folder"):
        export_run(run, ".")


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_folder, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        export_run(run, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_the_average_is_exported(tmp_path):
    files = make_untrained_run(tmp_path / "run", "ema.decay=0.9")
    weights = load_file(files.portable / "model.safetensors")
    average = {name: value + 1 for name, value in weights.items()}
    described = describe_state(
        step=3,
        optimizer="adamw",
        updates=3,
        data={},
        parameters={name: list(value.shape) for name, value in weights.items()},
        ema={"updates": 3, "decay": 0.9},
    )
    state = PortableState(weights, {}, average, described)
    write_portable(files.portable, state, [files.config, files.tokenizer])
    files.evaluation.mkdir()
    # Of the average or of the weights as trained: it does not say.
    (files.evaluation / "test_step_00000003.json").write_text('{"protocol": "p"}')
    name = "video.norm.weight"
    for kind, tensors in (("raw", weights), ("ema", average)):
        lines = export_run(files.root, tmp_path / kind, weights=Weights(kind))
        assert "without naming theirs: test_step_00000003" in "\n".join(lines)
        model = svilm_fast.load_pretrained(tmp_path / kind)
        assert torch.equal(model.encoder.state_dict()[name], tensors[f"encoder.{name}"])
        assert model.settings.weights == kind
        assert model.settings.step == 3


def test_the_command(run, tmp_path, capsys):
    words = ["export", "--run", str(run), "--out", str(tmp_path / "model")]
    assert run_app(app, words) == 0
    assert "wrote" in capsys.readouterr().out
    assert run_app(app, words) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert run_app(app, [*words[:2], str(tmp_path), *words[3:]]) == 2
    assert "is not a run directory" in capsys.readouterr().err
