"""Tokenizers: round trip, padding, truncation, files of others."""

from __future__ import annotations

import gzip

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel, WordPiece

from svilm_fast.data.config import TokenizerConfig
from svilm_fast.data.errors import DataError, MissingFileError
from svilm_fast.data.tokenizer import Tokenizer, load_or_train_tokenizer

CAPTIONS = ["A red circle spins.", "A blue square grows and a red star blinks.", "Über Größe"]
TOKENIZER = Tokenizer.train(CAPTIONS * 3, 300)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_text_has_tokens(text):
    tokens, mask = TOKENIZER.encode_batch([text], 200)
    assert int(tokens.max()) < TOKENIZER.vocab_size
    assert tokens[0, 0] == TOKENIZER.start_id
    assert tokens[0, int(mask.sum()) - 1] == TOKENIZER.end_id


@pytest.mark.parametrize("text", ["a red circle spins.", "größe 12 😀 unseen words", "x"])
def test_decoding_gives_the_text_back(text):
    tokens, _ = TOKENIZER.encode_batch([text], 100)
    assert TOKENIZER.decode(tokens[0]) == text


def test_shapes_padding_and_counted_truncation():
    tokenizer = Tokenizer.train(CAPTIONS, 300)
    tokens, mask = tokenizer.encode_batch(["red", CAPTIONS[1]], 8)
    assert tokens.shape == mask.shape == (2, 8)
    assert tokens.dtype == torch.int64
    assert bool((tokens[~mask] == tokenizer.pad_id).all())
    assert bool((tokens[mask] != tokenizer.pad_id).all())
    assert tokens[1, -1] == tokenizer.end_id
    assert tokenizer.truncated == 1
    assert tokenizer.encode_batch([], 8)[0].shape == (0, 8)


def test_training_is_deterministic_and_files_round_trip(tmp_path):
    again = Tokenizer.train(CAPTIONS * 3, 300)
    again.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    by_setting = load_or_train_tokenizer(TokenizerConfig(path=str(tmp_path)), [])
    for tokenizer in (again, loaded, by_setting):
        assert tokenizer.vocab_size == TOKENIZER.vocab_size
        assert torch.equal(
            tokenizer.encode_batch(CAPTIONS, 20)[0], TOKENIZER.encode_batch(CAPTIONS, 20)[0]
        )


def test_case_is_folded_by_default_and_kept_when_asked():
    low, _ = TOKENIZER.encode_batch(["RED Circle"], 12)
    assert torch.equal(low, TOKENIZER.encode_batch(["red circle"], 12)[0])
    cased = Tokenizer.train(CAPTIONS, 300, lowercase=False)
    assert cased.decode(cased.encode_batch(["RED Circle"], 20)[0][0]) == "RED Circle"


def test_a_users_tokenizer_file(tmp_path):
    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "dog": 9}
    FastTokenizer(WordLevel(words, "[UNK]")).save(str(tmp_path / "tokenizer.json"))
    config = TokenizerConfig(kind="hf", path=str(tmp_path))
    tokenizer = load_or_train_tokenizer(config, [])
    assert tokenizer.vocab_size == 10
    assert tokenizer.encode_batch(["dog"], 4)[0].tolist() == [[1, 9, 2, 0]]
    FastTokenizer(WordLevel({"dog": 0}, "dog")).save(str(tmp_path / "bare.json"))
    with pytest.raises(DataError, match="no padding token"):
        Tokenizer.load(tmp_path / "bare.json")


def test_clip_vocabulary_layout(tmp_path):
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(path, "wt") as stream:
        stream.write("#version: 0.2\na t</w>\nc at</w>\nd o\ndo g</w>\n")
    tokenizer = load_or_train_tokenizer(TokenizerConfig(kind="clip", path=str(path)), [])
    # 256 letters, 256 letters that end a word, 4 merges, start, end
    assert tokenizer.vocab_size == 518
    assert (tokenizer.start_id, tokenizer.end_id) == (516, 517)
    tokens, mask = tokenizer.encode_batch(["Cat  dog"], 6)
    assert tokens[0, :4].tolist() == [516, 513, 515, 517]
    assert int(mask.sum()) == 4
    assert tokenizer.decode(tokens[0]) == "cat dog"


def test_bad_tokenizer_files_are_typed_errors(tmp_path):
    with pytest.raises(MissingFileError, match=r"data\.tokenizer\.path"):
        Tokenizer.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        Tokenizer.load(tmp_path / "bad.json")
    (tmp_path / "bad.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="not a gzip"):
        Tokenizer.clip(tmp_path / "bad.gz")
    with gzip.open(tmp_path / "bomb.gz", "wb") as stream:
        stream.write(bytes(65 << 20))
    with pytest.raises(DataError, match="more than"):
        Tokenizer.clip(tmp_path / "bomb.gz")
    with pytest.raises(ValueError, match=r"tokenizer\.path"):
        TokenizerConfig(kind="hf")


def test_few_texts_get_the_tokens_that_many_get():
    texts = [f"a red dog number {n} runs over {n * 7} hills" for n in range(100)]
    tokenizer = Tokenizer.train(texts, 300)
    tokens, mask = tokenizer.encode_batch(texts, 12)
    for row, text in enumerate(texts):
        one, own = tokenizer.encode_batch([text], 12)
        assert torch.equal(one[0], tokens[row])
        assert torch.equal(own[0], mask[row])


def test_berts_tokenizer_file(tmp_path):
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "circle", "##s"]
    fast = FastTokenizer(WordPiece({name: n for n, name in enumerate(names)}, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # Special tokens that the file adds by itself must not appear twice.
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    tokens, mask = tokenizer.encode_batch(["A red Circles zzz"], 8)
    assert tokens.tolist() == [[2, 4, 5, 6, 7, 1, 3, 0]]
    assert mask.sum() == 7


def test_clips_tokenizer_file(tmp_path):
    names = ["r", "e", "d</w>", "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    model = BPE(
        {name: n for n, name in enumerate(names)},
        [("r", "e"), ("re", "d</w>")],
        end_of_word_suffix="</w>",
        unk_token="<|endoftext|>",
    )
    fast = FastTokenizer(model)
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.RobertaProcessing(("<|endoftext|>", 6), ("<|startoftext|>", 5))
    fast.save(str(tmp_path / "tokenizer.json"))
    tokens, mask = Tokenizer.load(tmp_path).encode_batch(["Red red"], 6)
    assert tokens.tolist() == [[5, 4, 4, 6, 6, 6]]
    assert mask.sum() == 4
