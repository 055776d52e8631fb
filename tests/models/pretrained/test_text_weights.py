"""CLIP's and BERT's text weights give those models' embeddings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.models.pretrained.image_models import Bert, OpenClip, as_transformers_clip
from tests.models.pretrained.towers import BERT, CLIP_TEXT, encoder, load, saved

EXACT = {"rtol": 0, "atol": 1e-5}
END = 59


def _captions():
    """Tokens that end with the largest one, and the mask of the real ones."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, END, (3, 10), generator=generator)
    lengths = torch.tensor([4, 10, 7])
    mask = torch.arange(10) < lengths[:, None]
    tokens = tokens.masked_fill(~mask, 0)
    tokens[torch.arange(3), lengths - 1] = END
    return tokens, mask


@pytest.mark.parametrize("names", ["open_clip", "open_clip text.", "transformers"])
def test_clip_text(names, tmp_path):
    source = OpenClip("text." if names.endswith(".") else "")
    tensors = as_transformers_clip(source) if names == "transformers" else source.tensors
    model = encoder(text=CLIP_TEXT)
    load(model, text=saved(tensors, tmp_path / "weights.safetensors"))
    tokens, mask = _captions()
    with torch.no_grad():
        found = model.encode_text(tokens, mask)
    torch.testing.assert_close(found, source.text_embedding(tokens), **EXACT)


@pytest.mark.parametrize(("prefix", "legacy"), [("bert.", False), ("", False), ("bert.", True)])
def test_bert(prefix, legacy, tmp_path):
    source = Bert(prefix, legacy_norms=legacy)
    model = encoder(text=BERT)
    [report] = load(model, text=saved(source.tensors, tmp_path / "weights.safetensors"))
    assert report.new == ["projection.weight", "projection.bias"]
    assert "folded: the first token type into the positions" in report.changed
    tokens, mask = _captions()
    with torch.no_grad():
        expected = F.normalize(model.text.projection(source(tokens, mask)), dim=-1)
        torch.testing.assert_close(model.encode_text(tokens, mask), expected, **EXACT)


def test_a_longer_text_interpolates_the_positions_between_both_ends(tmp_path):
    source = OpenClip()
    model = encoder(text=CLIP_TEXT | {"length": 23})
    [report] = load(model, text=saved(source.tensors, tmp_path / "weights.safetensors"))
    assert any("12 to text.length=23" in line for line in report.changed)
    table, given = model.text.embedding.position, source.words["positional_embedding"]
    torch.testing.assert_close(table[::2], given, **EXACT)
    torch.testing.assert_close(table[1::2], (given[1:] + given[:-1]) / 2, **EXACT)


def test_a_shorter_text_takes_the_first_positions(tmp_path):
    source = OpenClip()
    model = encoder(text=CLIP_TEXT | {"length": 10})
    [report] = load(model, text=saved(source.tensors, tmp_path / "weights.safetensors"))
    assert any("the first 10" in line for line in report.changed)
    tokens, mask = _captions()
    with torch.no_grad():
        found = model.encode_text(tokens, mask)
    torch.testing.assert_close(found, source.text_embedding(tokens), **EXACT)
