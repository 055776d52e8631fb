"""Clips of a split as tensors: decode, sample, augment; captions and nouns tokenised once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svilm_fast.core.philox import Site, derive_seeds, uniform
from svilm_fast.data.augment import DRAWS, centre_window, cut, random_window
from svilm_fast.data.batch import ClipBatch, sample_key
from svilm_fast.data.config import DataConfig
from svilm_fast.data.decode import DecodedClip, every_frame
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.decoders import reader_of
from svilm_fast.data.errors import DataError
from svilm_fast.data.nouns import OTHER_LANGUAGE, build_extractor, in_other_language
from svilm_fast.data.samples import SampleTable, ensure_nouns, open_split
from svilm_fast.data.sampling import FrameChoice
from svilm_fast.data.segments import InSegment
from svilm_fast.data.skips import SkipReport
from svilm_fast.data.tokenizer import Tokenizer, load_or_train_tokenizer

SHUFFLE_SITE = 101  # a stream of its own beside those of kernels.philox.Site
_NOUNS_DRAWN = 32  # of longer lists, training uses the first this many
SHORT_CLIP_NOTE = "clips with repeated frames"


@dataclass(frozen=True)
class Draw:
    """The random numbers of one training clip, all in [0, 1)."""

    frames: np.ndarray  # [F]
    augment: np.ndarray  # [DRAWS + 1], the last one picks the caption
    nouns: np.ndarray  # [_NOUNS_DRAWN + K], order of nouns and their templates


@dataclass
class Clip:
    """One sample, ready for collation."""

    index: int
    frames: Tensor  # uint8 [F, H, W, 3]
    frame_index: np.ndarray  # int64 [F]
    crop: tuple[float, float, float, float]
    flipped: bool
    caption: int  # row of the dataset's caption table
    nouns: list[int]  # rows of its noun vocabulary, at most K
    prompts: list[int]  # template of each noun
    metadata: dict[str, Any] | None
    notes: tuple[str, ...] = ()


class ClipDataset:
    """The clips of one split.

    Args:
        config: the data settings.
        split: "train", "val" or "test".
        tokenizer: encodes captions and prompts, once, here.
        train: random frames, crops, captions and nouns drawn from (seed, epoch, sample key);
            else the middle frames, the centre crop, the first caption and the first nouns.
        frames: F, frames per clip. image_size: H = W in pixels.
        metadata: whether batches carry the samples' json (default: not in training).
        table: the samples, where they have been listed already.
        seed: of the derangement that `config.shuffle_captions` asks for.
        nouns: whether anybody looks at nouns. Without, none are extracted or tokenised, and batches
            have K = 0 of them.

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
        self.table = table if table is not None else open_split(config, split)
        self.report = SkipReport(seen=len(self.table) + len(self.table.rejected))
        for skip in self.table.rejected:
            self.report.add(skip)
        self.report.notes += self.table.notes
        self.report.check_budget(config.skips.fraction, config.skips.always_allowed)
        samples = self.table.samples
        self.ids = [sample.id for sample in samples]
        self.keys = torch.tensor([sample_key(name) for name in self.ids], dtype=torch.int64)
        # Sample i speaks with the captions of sample text_of[i].
        self.text_of = np.arange(len(samples))
        if train and config.shuffle_captions:
            self.text_of = derangement(self.keys, seed)
        self.short_side = max(image_size, round(image_size * config.resize_margin))
        self._tokenise(tokenizer, nouns)
        self._cache: dict[str, DecodedClip] = {}
        self._cached_bytes = 0

    def _tokenise(self, tokenizer: Tokenizer, nouns: bool) -> None:
        samples, config = self.table.samples, self.config
        cut_before = tokenizer.truncated
        self.captions = [caption for sample in samples for caption in sample.captions]
        counts = [len(sample.captions) for sample in samples]
        self.first_caption = np.concatenate([[0], np.cumsum(counts)])
        tokens, self.text_mask = tokenizer.encode_batch(self.captions, config.tokenizer.length)
        self.text_tokens = tokens.to(torch.int32)
        if tokenizer.truncated > cut_before:
            self.report.notes["captions cut"] += tokenizer.truncated - cut_before
        per_caption: list[tuple[str, ...]] = [()] * len(self.captions)
        if nouns:
            per_sample = ensure_nouns(samples, build_extractor(config.nouns))
            per_caption = [found for captions in per_sample for found in captions]
            without = sum(not found for found in per_caption)
            if without:
                self.report.notes["captions without nouns"] += without
            other = sum(
                not found and in_other_language(config.nouns, caption)
                for found, caption in zip(per_caption, self.captions)
            )
            if other:
                self.report.notes[OTHER_LANGUAGE] += other
        self.noun_words = sorted({noun for found in per_caption for noun in found})
        number = {noun: row for row, noun in enumerate(self.noun_words)}
        self.caption_nouns = [tuple(number[noun] for noun in found) for found in per_caption]
        prompts = [
            template.replace("{noun}", noun)
            for noun in self.noun_words
            for template in config.nouns.templates
        ]
        cut_before = tokenizer.truncated
        tokens, self.prompt_mask = tokenizer.encode_batch(prompts, config.tokenizer.noun_length)
        self.prompt_tokens = tokens.to(torch.int32)
        if tokenizer.truncated > cut_before:
            self.report.notes["noun prompts cut"] += tokenizer.truncated - cut_before
        self.pad_id = tokenizer.pad_id

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """Changes when samples, captions or their order change."""
        return self.table.fingerprint

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_cached_bytes": 0}

    def draws(self, indices: Sequence[int], seed: int, epoch: int) -> list[Draw]:
        """The random numbers of training clips: functions of seed, epoch and sample key alone."""
        seeds = derive_seeds(seed, epoch, self.keys[list(indices)], Site.AUGMENT)
        nouns = DRAWS + 1
        frames = nouns + _NOUNS_DRAWN + self.config.nouns.per_caption
        numbers = uniform(seeds, torch.arange(frames + self.frames)).numpy()
        return [Draw(row[frames:], row[:nouns], row[nouns:frames]) for row in numbers]

    def clip(self, index: int, draw: Draw | None) -> Clip:
        """Load one sample; `draw` None gives the evaluation view. Raises DataError."""
        config = self.config
        pick = None if draw is None else draw.frames
        rows, index_in_video, notes = self._frames(index, pick)
        first, last = self.first_caption[self.text_of[index] :][:2]
        choice = 0.0 if draw is None else float(draw.augment[-1])
        caption = min(first + int(choice * (last - first)), last - 1)
        height, width = rows.shape[1:3]
        if draw is None:
            window = centre_window(width, height, config.resize_margin)
        else:
            window = random_window(
                width, height, draw.augment[:DRAWS], config.augment, self.captions[caption]
            )
        nouns, prompts = self._nouns(caption, draw)
        if len(np.unique(index_in_video)) < self.frames:
            notes = (SHORT_CLIP_NOTE, *notes)
        return Clip(
            index=index,
            frames=cut(rows, window, self.image_size),
            frame_index=index_in_video,
            crop=window.fractions(width, height),
            flipped=window.flipped,
            caption=caption,
            nouns=nouns,
            prompts=prompts,
            metadata=self.table.read_metadata(index) if self.metadata else None,
            notes=notes,
        )

    def _frames(
        self, index: int, uniforms: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """The chosen frames [F, h, w, 3] of a clip, their places in the video, and notes."""
        config = self.config
        choose = FrameChoice(
            self.frames, uniforms, config.short_clip, by_time=config.frames_by == "time"
        )
        place, segment = self.table.samples[index].video, self.table.samples[index].segment
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

    def _nouns(self, caption: int, draw: Draw | None) -> tuple[list[int], list[int]]:
        found = self.caption_nouns[caption]
        wanted = self.config.nouns.per_caption
        if draw is None:
            return list(found[:wanted]), [0] * min(wanted, len(found))
        found = found[:_NOUNS_DRAWN]
        if len(found) > wanted:
            chosen = np.sort(np.argsort(draw.nouns[: len(found)], kind="stable")[:wanted])
            found = tuple(found[i] for i in chosen.tolist())
        templates = len(self.config.nouns.templates)
        picks = (draw.nouns[_NOUNS_DRAWN:] * templates).astype(np.int64)
        return list(found), np.minimum(picks, templates - 1)[: len(found)].tolist()

    def collate(self, clips: Sequence[Clip]) -> ClipBatch:
        """Stack clips to a batch; shapes as in ClipBatch."""
        captions = torch.tensor([clip.caption for clip in clips])
        width, length = self.nouns_per_caption, self.config.tokenizer.noun_length
        noun_tokens = torch.full((len(clips), width, length), self.pad_id, dtype=torch.int64)
        noun_token_mask = torch.zeros(len(clips), width, length, dtype=torch.bool)
        noun_mask = torch.zeros(len(clips), width, dtype=torch.bool)
        templates = len(self.config.nouns.templates)
        for row, clip in enumerate(clips):
            prompts = [n * templates + p for n, p in zip(clip.nouns, clip.prompts)]
            noun_tokens[row, : len(prompts)] = self.prompt_tokens[prompts].to(torch.int64)
            noun_token_mask[row, : len(prompts)] = self.prompt_mask[prompts]
            noun_mask[row, : len(prompts)] = True
        indices = [clip.index for clip in clips]
        return ClipBatch(
            frames=torch.stack([clip.frames for clip in clips]),
            keys=self.keys[indices],
            ids=[self.ids[i] for i in indices],
            captions=[self.captions[i] for i in captions.tolist()],
            nouns=[[self.noun_words[n] for n in clip.nouns] for clip in clips],
            text_tokens=self.text_tokens[captions].to(torch.int64),
            text_mask=self.text_mask[captions],
            noun_tokens=noun_tokens,
            noun_token_mask=noun_token_mask,
            noun_mask=noun_mask,
            frame_index=torch.from_numpy(np.stack([clip.frame_index for clip in clips])),
            crop=torch.tensor([clip.crop for clip in clips], dtype=torch.float32),
            flipped=torch.tensor([clip.flipped for clip in clips]),
            metadata=[clip.metadata for clip in clips if clip.metadata is not None],
        )

    def batch(self, indices: Sequence[int], *, seed: int = 0, epoch: int = 0) -> ClipBatch:
        """The samples `indices` as one batch. Raises DataError for one that cannot be loaded."""
        draws: Sequence[Draw | None] = [None] * len(indices)
        if self.train:
            draws = self.draws(indices, seed, epoch)
        return self.collate([self.clip(i, draw) for i, draw in zip(indices, draws)])


def derangement(keys: Tensor, seed: int) -> np.ndarray:
    """A permutation int64 [n] of one cycle, so that no element stays, drawn from seed and keys."""
    if len(keys) < 2:
        raise DataError("data.shuffle_captions needs at least two samples")
    order = torch.argsort(derive_seeds(seed, 0, keys, SHUFFLE_SITE), stable=True).numpy()
    result = np.empty(len(order), dtype=np.int64)
    result[order] = np.roll(order, -1)
    return result


def prepare_tokenizer(config: DataConfig, table: SampleTable | None = None) -> Tokenizer:
    """The tokenizer of the settings, trained on the training captions where it has to be."""
    trained = config.tokenizer.kind == "bpe" and config.tokenizer.path is None
    captions: list[str] = []
    if trained:
        table = table if table is not None else open_split(config, "train")
        captions = [caption for sample in table.samples for caption in sample.captions]
        # prompts too: their words should not fall apart to letters
        captions += [template.replace("{noun}", "") for template in config.nouns.templates]
    return load_or_train_tokenizer(config.tokenizer, captions)
