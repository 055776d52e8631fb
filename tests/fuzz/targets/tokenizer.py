"""The tokenizer: any text, and tokenizer files of any content."""

from __future__ import annotations

import functools
import html
import unicodedata
from pathlib import Path

from hypothesis import strategies as st

from svilm_fast.data import text as texts
from svilm_fast.data.tokenizer import Tokenizer

from ..engine import Target
from ..texts import TEXTS, damaged_json


@functools.cache
def _trained() -> Tokenizer:
    text = "a red circle jumps over the lazy dog while two people watch it from the house"
    words = text.split()
    captions = [" ".join(words[n:] + words[:n]) for n in range(len(words))]
    return Tokenizer.train(captions, 400)


@functools.cache
def _stored() -> dict:
    import json

    return json.loads(_trained()._fast.to_str())


@st.composite
def _small(draw: st.DrawFn) -> bytes:
    """A tokenizer file with a short vocabulary, so that damage reaches every part of it."""
    stored = dict(_stored())
    model = dict(stored["model"])
    model["merges"] = model["merges"][:4]
    kept = {name for pair in model["merges"] for name in (*pair, "".join(pair))}
    special = {"<pad>", "<start>", "<end>"}
    vocabulary = [name for name in model["vocab"] if name in kept | special or len(name) == 1]
    model["vocab"] = {name: number for number, name in enumerate(vocabulary)}
    stored["model"] = model
    return draw(damaged_json(stored))


CASES = st.one_of(
    st.tuples(st.lists(TEXTS, max_size=4), st.integers(2, 40)), st.tuples(_small(), TEXTS)
)


def _encoded(tokenizer: Tokenizer, batch: list[str], length: int) -> None:
    tokens, mask = tokenizer.encode_batch(batch, length)
    assert tokens.shape == mask.shape == (len(batch), length)
    if not batch:
        return
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < tokenizer.vocab_size, "a token beyond the embedding table"
    counts = mask.sum(1)
    assert (counts >= 2).all()
    for row, kept, count in zip(tokens, mask, counts.tolist()):
        assert kept[:count].all(), "a gap in the mask"
        assert row[0] == tokenizer.start_id, "no start"
        assert row[count - 1] == tokenizer.end_id, "no end"
        assert (row[count:] == tokenizer.pad_id).all(), "tokens after the end"


def check(case: tuple, folder: Path) -> None:
    first, second = case
    if isinstance(first, bytes):
        (folder / "tokenizer.json").write_bytes(first)
        tokenizer = Tokenizer.load(folder)
        _encoded(tokenizer, [texts.clean(second), "a red dog"], 16)
        return
    tokenizer, batch = _trained(), [texts.clean(text) for text in first]
    _encoded(tokenizer, batch, second)
    for text in batch:
        plain = unicodedata.normalize("NFC", html.unescape(text)).strip()
        if any(name in text.lower() for name in ("<pad>", "<start>", "<end>")):
            continue  # special tokens in the text become special tokens
        tokens, mask = tokenizer.encode_batch([text], 4 * len(text.encode()) + 8)
        # Lower case differs between Unicode versions and libraries; compare without case.
        again = tokenizer.decode(tokens[0][mask[0]])
        if texts.is_visible(plain) and plain.isascii():
            assert again == plain.lower(), f"{again!r} differs from the text"


TARGET = Target("tokenizer", CASES, check, short=60)
