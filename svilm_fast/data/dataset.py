"""Clips of a split as tensors: decode, sample, augment, tokenise."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svilm_fast.core.philox import Site, derive_seeds, uniform
from svilm_fast.data.augment import DRAWS, centre_window, cut, random_window
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.config import DataConfig
from svilm_fast.data.decode import DecodedClip, every_frame
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.decoders import reader_of
from svilm_fast.data.order import derangement
from svilm_fast.data.samples import Ids, SampleTable, open_split
from svilm_fast.data.sampling import FrameChoice
from svilm_fast.data.segments import InSegment
from svilm_fast.data.skips import SkipReport
from svilm_fast.data.tokenizer import Tokenizer, load_or_train_tokenizer

_NOUNS_DRAWN = 32  # of longer lists, training uses the first this many
SHORT_CLIP_NOTE = "clips with repeated frames"
CAPTION_NOTE, PROMPT_NOTE = "captions cut", "noun prompts cut"
_PROMPTS_KEPT = 4096  # tokens of prompts that a process keeps


@dataclass(frozen=True)
class Draw:
    """The random numbers of one training clip, all in [0, 1)."""

    frames: np.ndarray  # [F]
    augment: np.ndarray  # [DRAWS + 1], the last one picks the caption
    nouns: np.ndarray  # [_NOUNS_DRAWN + K], order of nouns and their templates


@dataclass(frozen=True)
class ClipTexts:
    """What a clip is shown with."""

    caption: str
    tokens: Tensor  # int64 [S]
    mask: Tensor  # bool [S]
    nouns: tuple[str, ...]  # at most K
    noun_tokens: tuple[Tensor, ...]  # int64 [Sn] each, of the prompt around a noun
    noun_masks: tuple[Tensor, ...]  # bool [Sn] each
    notes: tuple[str, ...]  # what was cut


@dataclass
class Clip:
    """One sample, ready for collation."""

    index: int
    frames: Tensor  # uint8 [F, H, W, 3]
    frame_index: np.ndarray  # int64 [F]
    crop: tuple[float, float, float, float]
    flipped: bool
    texts: ClipTexts
    metadata: dict[str, Any] | None
    notes: tuple[str, ...] = ()


class ClipDataset:
    """The clips of one split.

    Args:
        config: the data settings.
        split: "train", "val" or "test".
        tokenizer: encodes captions and prompts of the clips that are loaded.
        train: random frames, crops, captions and nouns drawn from (seed, epoch, sample key);
            else the middle frames, the centre crop, the first caption and the first nouns.
        frames: F, frames per clip. image_size: H = W in pixels.
        metadata: whether batches carry the samples' json (default: not in training).
        table: the samples, where they have been listed already.
        seed: of the derangement that `config.shuffle_captions` asks for.
        nouns: whether anybody looks at nouns. Without, none are extracted or tokenised, and batches
            have K = 0 of them.

    Another process is given the place of the index, not the samples.

    Raises:
        DataError: no usable samples, or more refused than `config.skips` allows.
    """

    def __init__(
        self,
        config: DataConfig,
        split: str,
        tokenizer: Tokenizer,
        train: bool = False,
        *,
        frames: int,
        image_size: int,
        metadata: bool | None = None,
        table: SampleTable | None = None,
        seed: int = 0,
        nouns: bool = True,
    ) -> None:
        reader_of(config.decoder)  # raises where its library is missing
        self.config, self.split, self.train = config, split, train
        self.nouns_per_caption = config.nouns.per_caption if nouns else 0
        self.frames, self.image_size = frames, image_size
        self.metadata = not train if metadata is None else metadata
        table = open_split(config, split, nouns=nouns) if table is None else table
        self.table = table.with_nouns(config, split) if nouns else table
        self._reads_nouns = nouns
        self.report.check_budget(config.skips.fraction, config.skips.always_allowed)
        if train and config.shuffle_captions:
            self.table = self.table.shuffled(derangement(len(self.table), seed))
        self.short_side = max(image_size, round(image_size * config.resize_margin))
        self.tokenizer = tokenizer
        self._cache: dict[str, DecodedClip] = {}
        self._cached_bytes = 0
        self._prompt = functools.lru_cache(_PROMPTS_KEPT)(self._encode_prompt)

    @functools.cached_property
    def report(self) -> SkipReport:
        """What was refused and repaired while listing the samples."""
        table = self.table
        report = SkipReport(seen=len(table) + len(table.rejected), notes=table.notes)
        for skip in table.rejected:
            report.add(skip)
        if self._reads_nouns:
            report.notes += table.noun_notes
        return report

    @property
    def ids(self) -> Ids:
        """The names of the samples, read one by one from the index."""
        return self.table.ids

    @property
    def keys(self) -> np.ndarray:
        """`sample_key` of the ids, int64 [n], mapped from the index."""
        return self.table.keys

    def __len__(self) -> int:
        return len(self.table)

    @property
    def fingerprint(self) -> str:
        """Changes when samples, captions or their order change."""
        return self.table.fingerprint

    def shard_samples(self) -> np.ndarray:
        """Samples of each shard, int64 [shards], in the order of the samples."""
        return self.table.shard_samples()

    def __getstate__(self) -> dict[str, Any]:
        left = {"report", "_prompt"}
        kept = {name: value for name, value in self.__dict__.items() if name not in left}
        return {**kept, "_cache": {}, "_cached_bytes": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prompt = functools.lru_cache(_PROMPTS_KEPT)(self._encode_prompt)

    def draws(self, indices: Sequence[int], seed: int, epoch: int) -> list[Draw]:
        """The random numbers of training clips: functions of seed, epoch and sample key alone."""
        keys = torch.from_numpy(self.keys[list(indices)])
        seeds = derive_seeds(seed, epoch, keys, Site.AUGMENT)
        nouns = DRAWS + 1
        frames = nouns + _NOUNS_DRAWN + self.config.nouns.per_caption
        numbers = uniform(seeds, torch.arange(frames + self.frames)).numpy()
        return [Draw(row[frames:], row[:nouns], row[nouns:frames]) for row in numbers]

    def clip(self, index: int, draw: Draw | None, out: Tensor | None = None) -> Clip:
        """Load one sample; `draw` None gives the evaluation view. Raises DataError.

        The frames are written into `out` uint8 [F, H, W, 3] where it is given.
        """
        config = self.config
        pick = None if draw is None else draw.frames
        rows, index_in_video, notes = self._frames(index, pick)
        texts = self.texts(index, draw)
        height, width = rows.shape[1:3]
        if draw is None:
            window = centre_window(width, height, config.resize_margin)
        else:
            window = random_window(
                width, height, draw.augment[:DRAWS], config.augment, texts.caption
            )
        if len(np.unique(index_in_video)) < self.frames:
            notes = (SHORT_CLIP_NOTE, *notes)
        return Clip(
            index=index,
            frames=cut(rows, window, self.image_size, out),
            frame_index=index_in_video,
            crop=window.fractions(width, height),
            flipped=window.flipped,
            texts=texts,
            metadata=self.table.read_metadata(index) if self.metadata else None,
            notes=(*notes, *texts.notes),
        )

    def texts(self, index: int, draw: Draw | None) -> ClipTexts:
        """Caption and nouns of one sample with their tokens; `draw` as in `clip`."""
        captions = self.table.captions_of(index)
        choice = 0.0 if draw is None else float(draw.augment[-1])
        row = captions[min(int(choice * len(captions)), len(captions) - 1)]
        caption = self.table.caption(row)
        tokens, mask, captions_cut = self._encode([caption], self.config.tokenizer.length)
        nouns, templates = self._nouns(row, draw)
        prompts = [self._prompt(noun, template) for noun, template in zip(nouns, templates)]
        return ClipTexts(
            caption,
            tokens[0],
            mask[0],
            tuple(nouns),
            tuple(tokens for tokens, *_ in prompts),
            tuple(mask for _, mask, _ in prompts),
            (CAPTION_NOTE,) * captions_cut + (PROMPT_NOTE,) * sum(cut for *_, cut in prompts),
        )

    def _encode(self, texts: list[str], length: int) -> tuple[Tensor, Tensor, int]:
        """Tokens, mask, and how many of the texts were cut."""
        before = self.tokenizer.truncated
        tokens, mask = self.tokenizer.encode_batch(texts, length)
        return tokens, mask, self.tokenizer.truncated - before

    def _encode_prompt(self, noun: str, template: int) -> tuple[Tensor, Tensor, int]:
        text = self.config.nouns.templates[template].replace("{noun}", noun)
        tokens, mask, was_cut = self._encode([text], self.config.tokenizer.noun_length)
        return tokens[0], mask[0], was_cut

    def _frames(
        self, index: int, uniforms: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """The chosen frames [F, h, w, 3] of a clip, their places in the video, and notes."""
        config = self.config
        choose = FrameChoice(
            self.frames, uniforms, config.short_clip, by_time=config.frames_by == "time"
        )
        place, segment = self.table.video(index), self.table.segment(index)
        key = f"{place.path}:{place.entry.offset if place.entry else ''}:{segment or ''}"
        cached = self._cache.get(key)
        if cached is None:
            keep = config.cache == "memory" and self._cached_bytes < config.cache_bytes
            cached = decode_limited(
                self.table.read_video(index),
                InSegment(every_frame if keep else choose, segment),
                short_side=self.short_side,
                limits=config.limits,
                # A worker that takes longer for a batch would end the run.
                seconds=min(config.limits.decode_s, config.timeout_s / 2),
                decoder=config.decoder,
            )
            if not keep:
                return cached.frames, cached.index, cached.notes
            self._cache[key] = cached
            self._cached_bytes += cached.frames.nbytes
        places = InSegment(choose, segment)(cached.timeline) - cached.index[0]
        rows = np.minimum(places, len(cached.frames) - 1)
        return cached.frames[rows], cached.index[rows], ()

    def _nouns(self, caption: int, draw: Draw | None) -> tuple[list[str], list[int]]:
        """Nouns of a caption and the template of each, at most K."""
        wanted = self.nouns_per_caption
        found = (wanted and self.table.nouns(caption)) or ()
        if draw is None:
            return list(found[:wanted]), [0] * min(wanted, len(found))
        found = found[:_NOUNS_DRAWN]
        if len(found) > wanted:
            chosen = np.sort(np.argsort(draw.nouns[: len(found)], kind="stable")[:wanted])
            found = tuple(found[i] for i in chosen.tolist())
        templates = len(self.config.nouns.templates)
        picks = (draw.nouns[_NOUNS_DRAWN:] * templates).astype(np.int64)
        return list(found), np.minimum(picks, templates - 1)[: len(found)].tolist()

    def collate(self, clips: Sequence[Clip], frames: Tensor | None = None) -> ClipBatch:
        """Make a batch of clips; shapes as in ClipBatch.

        `frames` uint8 [b, F, H, W, 3] holds their frames already, where it is given.
        """
        width, length = self.nouns_per_caption, self.config.tokenizer.noun_length
        noun_tokens = torch.full(
            (len(clips), width, length), self.tokenizer.pad_id, dtype=torch.int64
        )
        noun_token_mask = torch.zeros(len(clips), width, length, dtype=torch.bool)
        noun_mask = torch.zeros(len(clips), width, dtype=torch.bool)
        texts = [clip.texts for clip in clips]
        for row, each in enumerate(texts):
            for place, (tokens, mask) in enumerate(zip(each.noun_tokens, each.noun_masks)):
                noun_tokens[row, place], noun_token_mask[row, place] = tokens, mask
                noun_mask[row, place] = True
        indices = [clip.index for clip in clips]
        batch = ClipBatch(
            frames=torch.stack([clip.frames for clip in clips]) if frames is None else frames,
            keys=torch.from_numpy(self.keys[indices]),
            ids=[self.ids[i] for i in indices],
            captions=[each.caption for each in texts],
            nouns=[list(each.nouns) for each in texts],
            text_tokens=torch.stack([each.tokens for each in texts]),
            text_mask=torch.stack([each.mask for each in texts]),
            noun_tokens=noun_tokens,
            noun_token_mask=noun_token_mask,
            noun_mask=noun_mask,
            frame_index=torch.from_numpy(np.stack([clip.frame_index for clip in clips])),
            crop=torch.tensor([clip.crop for clip in clips], dtype=torch.float32),
            flipped=torch.tensor([clip.flipped for clip in clips]),
            metadata=[clip.metadata for clip in clips if clip.metadata is not None],
        )
        self.table.stored.release()
        return batch

    def batch(self, indices: Sequence[int], *, seed: int = 0, epoch: int = 0) -> ClipBatch:
        """The samples `indices` as one batch. Raises DataError for one that cannot be loaded."""
        draws: Sequence[Draw | None] = [None] * len(indices)
        if self.train:
            draws = self.draws(indices, seed, epoch)
        return self.collate([self.clip(i, draw) for i, draw in zip(indices, draws)])


def prepare_tokenizer(config: DataConfig, table: SampleTable | None = None) -> Tokenizer:
    """The tokenizer of the settings, trained on the training captions where it has to be."""
    if config.tokenizer.kind != "bpe" or config.tokenizer.path is not None:
        return load_or_train_tokenizer(config.tokenizer, ())
    table = table if table is not None else open_split(config, "train")
    # prompts too: their words should not fall apart to letters
    prompts = (template.replace("{noun}", "") for template in config.nouns.templates)
    return load_or_train_tokenizer(config.tokenizer, itertools.chain(table.captions(), prompts))
