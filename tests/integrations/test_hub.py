"""A model for the hub is saved to and loaded from a folder, without network."""

from __future__ import annotations

import importlib
import socket
import sys

import pytest
import torch

import svilm_fast
from svilm_fast.core.errors import UserError

pytest.importorskip("huggingface_hub")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_save_and_load(exported, tmp_path, no_network):
    from svilm_fast.integrations.hub import HubModel

    model = HubModel.from_pretrained(exported)
    model.save_pretrained(tmp_path / "saved")
    for name in ("config.json", "README.md", "tokenizer.json", "model.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == (exported / name).read_bytes()
    again = HubModel.from_pretrained(str(tmp_path / "saved"), device="cpu")
    assert not again.training
    texts = ["a red circle", "a green square"]
    expected = svilm_fast.load_pretrained(exported).embed_text(texts)
    assert torch.equal(again.embed_text(texts), expected)
    assert torch.equal(svilm_fast.load_pretrained(tmp_path / "saved").embed_text(texts), expected)


def test_a_card_that_was_edited_stays(exported, tmp_path, no_network):
    from svilm_fast.integrations.hub import HubModel

    (tmp_path / "README.md").write_text("my card")
    model = HubModel.of(svilm_fast.load_pretrained(exported))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my card"
    assert model.card.startswith("---\nlicense: mit\n")


def test_an_unknown_option_is_an_error(exported):
    from svilm_fast.integrations.hub import HubModel

    with pytest.raises(TypeError, match="no option 'strikt'"):
        HubModel.from_pretrained(exported, strikt=True)


def test_without_huggingface_hub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "svilm_fast.integrations.hub", raising=False)
    with pytest.raises(UserError, match=r"svilm-fast\[hub\]"):
        importlib.import_module("svilm_fast.integrations.hub")
