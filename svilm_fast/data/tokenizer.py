"""Text to tokens: a byte-level BPE trained from captions, CLIP's vocabulary, or a user's file."""

from __future__ import annotations

import gzip
import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from svilm_fast.core.messages import single_line
from svilm_fast.data import text
from svilm_fast.data.config import TokenizerConfig
from svilm_fast.data.errors import DataError, MissingFileError

PAD, START, END = "<pad>", "<start>", "<end>"
_PAD_NAMES = (PAD, "[PAD]", "<|pad|>", "<|endoftext|>")
_START_NAMES = (START, "[CLS]", "<s>", "<|startoftext|>", "<bos>", "<|endoftext|>")
_END_NAMES = (END, "[SEP]", "</s>", "<|endoftext|>", "<eos>")

# Fewer texts are encoded by the calling thread: a pool of threads, one per core in every loader
# worker, would cost more than it saves.
_PARALLEL_FROM = 64

_CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
_CLIP_BYTES = 64 << 20  # its text is 3 MB; a bomb is not decompressed
_CLIP_MERGES = 49152 - 256 - 2
_CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Turns texts into rows of tokens: start, text, end, padding.

    `pad_id`, `start_id` and `end_id` are the special tokens and `vocab_size` counts all tokens.
    `truncated` counts the texts that were cut so far; their last token is still `end_id`.
    """

    def __init__(self, fast: FastTokenizer) -> None:
        self._fast = fast
        self._fast.no_padding()
        self._fast.no_truncation()
        self.pad_id = self._special(_PAD_NAMES, "padding")
        self.start_id = self._special(_START_NAMES, "start")
        self.end_id = self._special(_END_NAMES, "end")
        self.truncated = 0

    def _special(self, names: tuple[str, ...], what: str) -> int:
        for name in names:
            found = self._fast.token_to_id(name)
            if found is not None:
                return int(found)
        raise DataError(f"the tokenizer has no {what} token; expected one of {', '.join(names)}")

    @property
    def vocab_size(self) -> int:
        # ids may have holes: an embedding table needs the largest id
        return max(self._fast.get_vocab().values()) + 1

    @classmethod
    def train(
        cls, captions: Iterable[str], vocab_size: int = 4096, *, lowercase: bool = True
    ) -> Tokenizer:
        """Learn a byte-level BPE of at most `vocab_size` tokens; no text is out of vocabulary."""
        fast = FastTokenizer(BPE())
        steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
        fast.normalizer = normalizers.Sequence(steps)
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        fast.decoder = decoders.ByteLevel()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, START, END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        fast.train_from_iterator(map(text.clean, captions), trainer)
        return cls(fast)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load a `tokenizer.json`, or one inside the folder `path`."""
        file = Path(path) / "tokenizer.json" if os.path.isdir(path) else Path(path)
        if not file.is_file():
            raise MissingFileError(f"no tokenizer at {str(file)!r}: set data.tokenizer.path")
        try:
            fast = FastTokenizer.from_file(str(file))
        except Exception as error:  # the Rust side raises bare Exception
            why = single_line(error)
            raise DataError(f"{str(file)!r} is not a tokenizer.json: {why}") from None
        return cls(fast)

    @classmethod
    def clip(cls, path: str | Path | None = None) -> Tokenizer:
        """CLIP's vocabulary, from `path` or from an installed open_clip."""
        file = Path(path) if path else _installed_clip_vocabulary()
        if not file.is_file():
            raise MissingFileError(f"no CLIP vocabulary at {str(file)!r}")
        try:
            with gzip.open(file, "rb") as stream:
                data = stream.read(_CLIP_BYTES + 1)
        except (OSError, EOFError) as error:
            raise DataError(f"{str(file)!r} is not a gzip file: {single_line(error)}") from None
        if len(data) > _CLIP_BYTES:
            raise DataError(f"{str(file)!r} holds more than {_CLIP_BYTES} bytes: not CLIP's file")
        lines = text.decode_utf8(data, str(file), DataError).split("\n")[1 : _CLIP_MERGES + 1]
        merges = [tuple(line.split()) for line in lines if line]
        if any(len(pair) != 2 for pair in merges):
            raise DataError(f"{str(file)!r} does not hold pairs to merge: not CLIP's file")
        letters = _byte_letters()
        names = letters + [letter + "</w>" for letter in letters]
        names += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
        vocabulary = {name: number for number, name in enumerate(names)}
        pairs = [(first, second) for first, second in merges]
        fast = FastTokenizer(BPE(vocabulary, pairs, end_of_word_suffix="</w>"))
        fast.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        fast.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_CLIP_SPLIT), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        fast.decoder = decoders.ByteLevel()
        return cls(fast)

    def same_as(self, other: Tokenizer) -> bool:
        """Whether both give every text the same tokens."""
        return self.to_json() == other.to_json()

    def to_json(self) -> str:
        """The content of a `tokenizer.json`."""
        return self._fast.to_str()

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json` (readable by the tokenizers and transformers libraries)."""
        target = Path(path) / "tokenizer.json" if os.path.isdir(path) else Path(path)
        partial = target.with_name(target.name + ".partial")
        self._fast.save(str(partial))
        os.replace(partial, target)

    def encode_batch(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Tokens int64 [n, length] and a mask bool [n, length], True on start, text and end."""
        if length < 2:
            raise ValueError(f"length must be at least 2 for start and end, got {length}")
        tokens = torch.full((len(texts), length), self.pad_id, dtype=torch.int64)
        mask = torch.zeros(len(texts), length, dtype=torch.bool)
        cleaned = [text.clean(caption) for caption in texts]
        if len(cleaned) < _PARALLEL_FROM:
            encodings = [self._fast.encode(each, add_special_tokens=False) for each in cleaned]
        else:
            encodings = self._fast.encode_batch(cleaned, add_special_tokens=False)
        for row, encoding in enumerate(encodings):
            self.truncated += len(encoding.ids) > length - 2
            ids = [self.start_id, *encoding.ids[: length - 2], self.end_id]
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = True
        return tokens, mask

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of one row of tokens, without special tokens."""
        special = {self.pad_id, self.start_id, self.end_id}
        ids = [int(token) for token in tokens if int(token) not in special]
        return self._fast.decode(ids).replace("</w>", " ").strip()


def _byte_letters() -> list[str]:
    """CLIP's 256 stand-in letters for bytes in the order of its vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def _installed_clip_vocabulary() -> Path:
    spec = importlib.util.find_spec("open_clip")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise MissingFileError(
            "data.tokenizer.kind=clip needs CLIP's vocabulary: pip install --no-deps "
            f"open_clip_torch, or set data.tokenizer.path to {_CLIP_FILE}"
        )
    return Path(folders[0]) / _CLIP_FILE


def load_or_train_tokenizer(config: TokenizerConfig, captions: Iterable[str]) -> Tokenizer:
    """The tokenizer that the settings describe; `captions` are read only when it is trained."""
    if config.kind == "clip":
        return Tokenizer.clip(config.path)
    if config.path is not None:
        return Tokenizer.load(config.path)
    return Tokenizer.train(captions, config.vocab_size, lowercase=config.lowercase)
