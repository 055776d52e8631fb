"""Grounding gives the attention over the groups, and the patches of the strongest group."""

from __future__ import annotations

import pytest
import torch

import svilm_fast
from svilm_fast.core.errors import UserError
from svilm_fast.inference.folder import load_pretrained
from svilm_fast.inference.model import PretrainedModel
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.report.probe import probe_clips
from svilm_fast.tasks.clips import evaluation_clips
from svilm_fast.train.run.loaded_run import load_run


def test_grounding_equals_the_definition_and_the_report(run, exported):
    model = svilm_fast.load_pretrained(exported)
    loaded = load_run(run)
    dataset = evaluation_clips(loaded.config, "test", loaded.tokenizer, nouns=True)
    batch = dataset.batch([0, 1])
    (probe, _) = probe_clips(loaded.model.encoder, batch, beta=model.settings.sharpness)
    found = model.ground(batch.frames[0], probe.nouns)
    grid = model.settings.video.grid
    assert found.nouns == probe.nouns
    assert found.groups.tolist() == probe.groups.tolist()
    torch.testing.assert_close(
        found.attention, torch.from_numpy(probe.noun_weights), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        found.attention, (model.settings.sharpness * found.scores).softmax(dim=1)
    )
    assert found.masks.shape == (len(probe.nouns), *grid)
    for noun, mask in enumerate(found.masks):
        assert torch.equal(mask, found.groups == found.scores[noun].argmax())
    assert torch.equal(found.clip, batch.frames[0])


def test_a_file_is_read_as_by_embed_video(run, exported, tmp_path):
    loaded = load_run(run)
    dataset = evaluation_clips(loaded.config, "test", loaded.tokenizer, nouns=False)
    path = tmp_path / "clip.mp4"
    path.write_bytes(dataset.table.read_video(0))
    found = svilm_fast.load_pretrained(exported).ground(path, "circle")
    assert torch.equal(found.clip, dataset.batch([0]).frames[0])
    assert found.nouns == ("circle",)


def test_what_cannot_be_grounded_is_refused(exported):
    model = load_pretrained(exported)
    settings = model.settings
    clip = torch.zeros(settings.video.frames, 32, 32, 3, dtype=torch.uint8)
    for nouns in ([], [" "]):
        with pytest.raises(ValueError, match="at least one noun"):
            model.ground(clip, nouns)
    encoder = DualEncoder(settings.model, settings.video, settings.text, groups=False)
    without = PretrainedModel(encoder, settings, model.tokenizer)
    with pytest.raises(UserError, match="no group tokens"):
        without.ground(clip, "dog")
