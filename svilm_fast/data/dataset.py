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
from svilm_fast.data.annotations import Label
from svilm_fast.data.augment import DRAWS
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.clip import Clip, ClipTexts, batch_of
from svilm_fast.data.config import DataConfig
from svilm_fast.data.decode import Choose, DecodedClip, every_frame
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.decoders import reader_of
from svilm_fast.data.errors import DataError
from svilm_fast.data.order import derangement
from svilm_fast.data.palette_windows import CodeWindow
from svilm_fast.data.palettes.decode import check_compression, named_errors
from svilm_fast.data.sample_rows import Ids
from svilm_fast.data.samples import SampleTable, open_split
from svilm_fast.data.sampling import FrameChoice, Together
from svilm_fast.data.segments import InSegment
from svilm_fast.data.skips import SkipReport
from svilm_fast.data.tokenizer import Tokenizer, load_or_train_tokenizer
from svilm_fast.data.video_embeddings import VideoEmbeddings
from svilm_fast.data.views import ONE_VIEW, ClipViews, Views, cut_views, frame_choices

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
    groups: tuple[np.ndarray, ...] = ()  # [CropGroup.numbers] for each group of views


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
            have K = 0 of them. With `config.captions="none"` there are none, and captions
            are empty texts, whose tokens are start and end.
        annotations: whether batches carry labels, questions and answers.
        embeddings: D of the samples' stored embeddings, which batches carry then; a sample with
            another or none cannot be loaded.
        views: several views of each sample.
        instead: embeddings that batches carry instead of the videos, none of which is decoded;
            the frames are one black pixel each.
        teacher: embeddings of videos and first captions that batches carry besides the videos.
        codes: batches hold the codes and palettes of compressed clips instead of their frames.

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
        annotations: bool = False,
        embeddings: int | None = None,
        views: Views = ONE_VIEW,
        instead: VideoEmbeddings | None = None,
        teacher: VideoEmbeddings | None = None,
        codes: bool = False,
    ) -> None:
        reader_of(config.decoder)  # raises where its library is missing
        views.check(train)
        self.config, self.split, self.train = config, split, train
        self.annotations, self.embeddings, self.views = annotations, embeddings, views
        nouns = nouns and config.captions != "none"
        self.nouns_per_caption = config.nouns.per_caption if nouns else 0
        self.instead, self.teacher = instead, teacher
        self.frames, self.image_size = (frames, image_size) if instead is None else (1, 1)
        self.metadata = not train if metadata is None else metadata
        table = open_split(config, split, nouns=nouns) if table is None else table
        self.table = table.with_nouns(config, split) if nouns else table
        if train:
            self.table = self.table.mixed(config.caption_mix.shares())
        self._reads_nouns = nouns
        if codes and views != ONE_VIEW:
            raise DataError("further views need frames: set data.decompress=worker")
        self.codes = CodeWindow.of(self.table, config, frames, image_size) if codes else None
        if embeddings is not None:
            self.table.check_embeddings(embeddings)
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
    def labels(self) -> list[Label | list[Label] | None]:
        """The label of every sample, read from the index. Raises AnnotationError."""
        return list(self.table.labels())

    @property
    def frame_shapes(self) -> list[tuple[int, ...]]:
        """Shapes [V, F, H, W, 3] of a sample's frames: of the clip (V = 1) or its evaluation views,
        then of each group.
        """
        if self.codes is not None:
            return [(1, *self.codes.shape)]
        clip = (self.frames, self.image_size, self.image_size, 3)
        return [(self.views.count, *clip), *(group.shape for group in self.views.groups)]

    @property
    def fingerprint(self) -> str:
        """Changes when samples, captions or their order change."""
        return self.table.fingerprint

    @property
    def same_source(self) -> dict[str, Any]:
        """What `data.same_source=separate` needs to know of the samples' sources."""
        return self.table.same_source

    @property
    def contents(self) -> Any:
        """Changes when videos are replaced under their names."""
        return self.table.contents

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
        keys = torch.from_numpy(self.table.keys_at(indices))
        seeds = derive_seeds(seed, epoch, keys, Site.AUGMENT)
        nouns = DRAWS + 1
        frames = nouns + _NOUNS_DRAWN + self.config.nouns.per_caption
        numbers = uniform(seeds, torch.arange(frames + self.frames)).numpy()
        # Streams of their own: further views change nothing of the clip.
        groups = [
            uniform(
                derive_seeds(seed, epoch, keys, Site.AUGMENT, layer), torch.arange(group.numbers)
            ).numpy()
            for layer, group in enumerate(self.views.groups, 1)
        ]
        return [
            Draw(row[frames:], row[:nouns], row[nouns:frames], tuple(each[i] for each in groups))
            for i, row in enumerate(numbers)
        ]

    def clip(self, index: int, draw: Draw | None, out: Sequence[Tensor] | None = None) -> Clip:
        """Load one sample; `draw` None gives the evaluation view or views. Raises DataError.

        The frames are written into `out`, uint8 tensors of `frame_shapes`, where it is given.
        """
        # What costs least comes first: a sample without it is not decoded.
        config = self.config
        annotations = self.table.annotations(index) if self.annotations else None
        width = self.embeddings
        embedding = None if width is None else self.table.read_embedding(index, width)
        if self.instead is not None:
            embedding = self.instead.read(int(self.table.keys_at([index])[0]), self.ids[index])
        of_text = None
        if self.teacher is not None:
            key, name = int(self.table.keys_at([index])[0]), self.ids[index]
            embedding, of_text = self.teacher.read(key, name), self.teacher.read_text(key, name)
        if out is None:
            out = [torch.empty(shape, dtype=torch.uint8) for shape in self.frame_shapes]
        texts = self.texts(index, draw)
        if self.instead is not None:
            black = ClipViews(out[0].zero_(), np.zeros((1, 1), np.int64), [(0, 0, 1, 1)], [False])
            metadata = self.table.read_metadata(index) if self.metadata else None
            return Clip(index, black, texts, metadata, texts.notes, annotations, embedding)
        notes: tuple[str, ...] = ()
        further: list[ClipViews] = []
        palette = None
        if self.codes is not None:
            drawn = None if draw is None else (draw.frames, draw.augment)
            shown, palette = self.codes.read(
                self.table, index, config, drawn, texts.caption, out[0]
            )
        else:
            shown, further, notes = self._cut(index, draw, texts.caption, out)
        if any(len(np.unique(row)) < self.frames for row in shown.frame_index):
            notes = (SHORT_CLIP_NOTE, *notes)
        return Clip(
            index=index,
            shown=shown,
            texts=texts,
            metadata=self.table.read_metadata(index) if self.metadata else None,
            notes=(*notes, *texts.notes),
            annotations=annotations,
            embedding=embedding,
            text_embedding=of_text,
            further=further,
            palette=palette,
        )

    def _cut(
        self, index: int, draw: Draw | None, caption: str, out: Sequence[Tensor]
    ) -> tuple[ClipViews, list[ClipViews], tuple[str, ...]]:
        """The clip or its views, those of each group, and notes."""
        config = self.config
        numbers = None if draw is None else draw.frames
        by_time = config.frames_by == "time"
        choice = FrameChoice(self.frames, numbers, config.short_clip, by_time)
        groups = () if draw is None else draw.groups
        chosen, notes = self._frames(index, frame_choices(self.views, choice, groups))
        window_numbers = None if draw is None else draw.augment[:DRAWS]
        shown, *further = cut_views(
            self.views, chosen, window_numbers, groups, config, caption, out
        )
        return shown, further, notes

    def texts(self, index: int, draw: Draw | None) -> ClipTexts:
        """Caption and nouns of one sample with their tokens; `draw` as in `clip`."""
        captions = self.table.captions_of(index)
        row = captions[self._caption(captions, draw)] if captions else None
        caption = "" if row is None else self.table.caption(row)
        tokens, mask, captions_cut = self._encode([caption], self.config.tokenizer.length)
        nouns, templates = ([], []) if row is None else self._nouns(row, draw)
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

    def prompt_tokens(self, nouns: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens int32 [n, S] and mask bool [n, S] of nouns in the first prompt."""
        prompts = [self._prompt(noun, 0) for noun in nouns]
        tokens = torch.stack([tokens for tokens, _, _ in prompts])
        return tokens, torch.stack([mask for _, mask, _ in prompts])

    def _caption(self, rows: Sequence[int], draw: Draw | None) -> int:
        """Which of a sample's captions is shown: the first, or one drawn by their weights."""
        choice = 0.0 if draw is None else float(draw.augment[-1])
        weights = None if draw is None else self.table.caption_weights(rows)
        if weights is None:
            return min(int(choice * len(rows)), len(rows) - 1)
        ends = np.cumsum(weights)
        # Right: a caption of weight 0 is never drawn. Weights near the smallest float64 round up.
        drawn = np.searchsorted(ends, choice * ends[-1], side="right")
        return int(min(drawn, np.searchsorted(ends, ends[-1])))

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
        self, index: int, choices: Sequence[Choose]
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
        """Of each choice the frames [n, h, w, 3] and their places in the video, and notes.

        The video is decoded once for all choices.
        """
        config = self.config
        place, segment = self.table.video(index), self.table.segment(index)
        longest = config.first_seconds
        parts = [InSegment(choose, segment, longest) for choose in choices]
        every, together = InSegment(every_frame, segment, longest), Together(tuple(parts))
        key = f"{place.path}:{place.entry.offset if place.entry else ''}:{segment or ''}:{longest}"
        clip = self._cache.get(key)
        keep = clip is not None
        notes: tuple[str, ...] = ()
        if clip is None:
            keep = config.cache == "memory" and self._cached_bytes < config.cache_bytes
            data = self.table.read_video(index)
            with named_errors(self.table.named(index)):
                check_compression(data, config, required=self.train)
                clip = decode_limited(
                    data,
                    every if keep else together,
                    short_side=self.short_side,
                    limits=config.limits,
                    # A worker that takes longer for a batch would end the run.
                    seconds=min(config.limits.decode_s, config.timeout_s / 2),
                    decoder=config.decoder,
                )
            notes = clip.notes
            if keep:
                self._cache[key] = clip
                self._cached_bytes += clip.frames.nbytes
        decoded = (every if keep else together)(clip.timeline)
        rows = [np.searchsorted(decoded, choose(clip.timeline)) for choose in parts]
        return [(_taken(clip.frames, each), clip.index[each]) for each in rows], notes

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

    def collate(self, clips: Sequence[Clip], frames: Sequence[Tensor] | None = None) -> ClipBatch:
        """Make a batch of clips; shapes as in ClipBatch.

        `frames`, uint8 [b, ...] for each of `frame_shapes`, hold their frames already, where they
        are given.
        """
        indices = [clip.index for clip in clips]
        batch = batch_of(
            clips,
            ids=[self.ids[i] for i in indices],
            keys=torch.from_numpy(self.table.keys_at(indices)),
            source_ids=self._source_ids(indices),
            noun_shape=(self.nouns_per_caption, self.config.tokenizer.noun_length),
            pad_id=self.tokenizer.pad_id,
            frames=frames,
        )
        self.table.stored.release()
        return batch

    def _source_ids(self, indices: Sequence[int]) -> Tensor | None:
        if not self.train or self.config.same_source != "mask":
            return None
        return torch.from_numpy(self.table.sources_at(indices))

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
    table = table.mixed(config.caption_mix.shares())
    # prompts too: their words should not fall apart to letters
    prompts = (template.replace("{noun}", "") for template in config.nouns.templates)
    return load_or_train_tokenizer(config.tokenizer, itertools.chain(table.captions(), prompts))


def _taken(frames: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`frames[rows]`; a view where the rows follow one another, as they do with one choice."""
    first, count = int(rows[0]), len(rows)
    if np.array_equal(rows, np.arange(first, first + count)):
        return frames[first : first + count]
    return frames[rows]
