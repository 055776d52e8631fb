"""The text encoder: padding, pooling, several sets of sequences in one call."""

from __future__ import annotations

import pytest
import torch

from svilm_fast.models.config import TextConfig
from svilm_fast.models.text_encoder import TextSequences


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": "start"},
        {"pool": "mean"},
        {"pool": "end"},
        {"pool": "end", "causal": True},
        {"pool": "start", "post_norm": True, "embedding_norm": True},
    ],
)
def test_padding_changes_nothing(make_encoder, text, changes):
    encoder = make_encoder(text=changes)
    tokens, mask = text
    embedded = encoder.encode_text(tokens, mask)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(4, dtype=torch.float64))
    other = torch.where(mask, tokens, (tokens + 17) % 50)
    torch.testing.assert_close(encoder.encode_text(other, mask), embedded)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = encoder.encode_text(tokens[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone[0], embedded[row])


def test_order_of_tokens_matters(make_encoder):
    encoder = make_encoder()
    tokens = torch.tensor([[3, 4, 5]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert not torch.allclose(
        encoder.encode_text(tokens, mask), encoder.encode_text(tokens.flip(1), mask), atol=1e-6
    )


def test_sets_of_different_length_share_one_call(make_encoder, text):
    encoder = make_encoder()
    tokens, mask = text
    nouns, noun_mask = tokens[:, :4].repeat(2, 1), mask[:, :4].repeat(2, 1)
    calls = []
    encoder.text.register_forward_hook(lambda *_: calls.append(1))
    captions, prompted = encoder.encode_texts(
        [TextSequences(tokens, mask), TextSequences(nouns, noun_mask)]
    )
    assert len(calls) == 1
    torch.testing.assert_close(captions, encoder.encode_text(tokens, mask))
    torch.testing.assert_close(prompted, encoder.encode_text(nouns, noun_mask))


def test_only_nouns_keep_their_length_where_asked(make_encoder, text):
    encoder = make_encoder()
    tokens, mask = text
    sets = [TextSequences(tokens, mask), TextSequences(tokens, mask, nouns=True)]
    captions, nouns = encoder.encode_texts(sets)
    # The same sequences at other rows of a batch: products may round otherwise.
    torch.testing.assert_close(captions, nouns)
    encoder.text.config = encoder.text.config.model_copy(update={"unit_nouns": False})
    same, free = encoder.encode_texts(sets)
    torch.testing.assert_close(same, captions)
    torch.testing.assert_close(free, encoder.encode_nouns(tokens, mask))
    lengths = free.norm(dim=1, keepdim=True)
    assert (lengths - 1).abs().min() > 1e-3
    torch.testing.assert_close(free / lengths, captions)


def test_a_sequence_without_tokens_is_finite_and_disturbs_nothing(make_encoder, text):
    encoder = make_encoder()
    tokens, mask = text
    emptied = mask.clone()
    emptied[0] = False
    embedded = encoder.encode_text(tokens, emptied)
    assert embedded.isfinite().all()
    torch.testing.assert_close(embedded[1:], encoder.encode_text(tokens, mask)[1:])
    embedded[1:].sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.text.parameters())


def test_checkpointing_changes_no_gradient(make_encoder, text):
    gradients = []
    for recompute in (False, True):
        encoder = make_encoder(text={"checkpoint_activations": recompute})
        encoder.encode_text(*text)[:, 0].sum().backward()
        gradients.append([p.grad for p in encoder.text.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=1e-14)


def test_too_long_and_misshapen_texts_are_refused(make_encoder):
    encoder = make_encoder()
    with pytest.raises(ValueError, match=r"does not fit text\.length=12"):
        encoder.encode_text(torch.zeros(1, 13).long(), torch.ones(1, 13).bool())
    with pytest.raises(ValueError, match=r"must both be \[n, S\]"):
        encoder.encode_text(torch.zeros(1, 5).long(), torch.ones(1, 4).bool())


def test_a_causal_tower_reads_no_later_token(make_encoder):
    tokens, mask = torch.tensor([[3, 4, 5, 6]]), torch.ones(1, 4, dtype=torch.bool)
    other = torch.tensor([[3, 4, 8, 9]])
    for causal in (True, False):
        encoder = make_encoder(text={"causal": causal, "pool": "mean"})
        states = []
        encoder.text.norm.register_forward_hook(lambda m, i, out, kept=states: kept.append(out))
        encoder.encode_text(tokens, mask)
        encoder.encode_text(other, mask)
        first, second = (found[0] for found in states)
        assert torch.equal(first[:2], second[:2]) == causal
        assert not torch.allclose(first[2:], second[2:])


@pytest.mark.parametrize("noise", [False, True])
def test_post_norm_gives_normed_states(make_encoder, text, seeds, noise):
    encoder = make_encoder(text={"post_norm": True, "embedding_norm": True, "drop_path": 0.5})
    for block in encoder.text.blocks:
        torch.nn.init.ones_(block.mlp_norm.weight)
        torch.nn.init.zeros_(block.mlp_norm.bias)
    found = []
    encoder.text.norm.register_forward_hook(lambda m, i, out: found.append(out))
    encoder.encode_texts([TextSequences(*text, seeds if noise else None)])
    torch.testing.assert_close(found[0].mean(-1), torch.zeros_like(found[0][..., 0]))


def test_causal_attention_with_the_first_token_pooled_is_refused():
    with pytest.raises(ValueError, match=r"set text\.pool to end or mean"):
        TextConfig(causal=True)
