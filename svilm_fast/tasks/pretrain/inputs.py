"""From a batch of clips to the inputs of the model: cut-and-paste, seeds, device."""

from __future__ import annotations

from typing import Any

from svilm_fast.core.philox import Site, StepSeeds
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.cut_paste import cut_and_paste
from svilm_fast.data.palettes.format import PixelBlock
from svilm_fast.data.palettes.frames import PaletteFrames
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.tasks.base import RankPlace, TaskConfig


def model_inputs(batch: ClipBatch, config: TaskConfig, step: int, ranks: RankPlace) -> ModelInputs:
    """Move a rank's whole batch to the device and blend its clips there.

    Blending needs the whole local batch, so it precedes the split into micro-batches. Every random
    number is a function of (run seed, step, sample key), so a replay of the step repeats it.
    """
    loaded, batch = batch, batch.to(ranks.device)
    seeds = StepSeeds(config.run.seed, step, batch.keys)
    reads = config.objectives.reads()
    compressed = _compressed(batch, config)
    inputs: dict[str, Any] = {
        "text_tokens": batch.text_tokens,
        "text_mask": batch.text_mask,
        "seeds": seeds,
    }
    if reads.nouns:
        inputs |= {
            "noun_tokens": batch.noun_tokens,
            "noun_token_mask": batch.noun_token_mask,
            "noun_mask": batch.noun_mask,
        }
    if batch.source_ids is not None:
        inputs["source_ids"] = batch.source_ids
    if reads.stored:
        inputs |= {
            "teacher_videos": batch.embeddings,
            "teacher_texts": batch.text_embeddings,
        }
    if config.data.video_embeddings is not None:
        inputs["video_embeddings"] = batch.embeddings
    elif "clean" in reads.views:
        inputs["frames"] = batch.frames if compressed is None else compressed
    if "blended" in reads.views:
        pasted = cut_and_paste(
            batch.frames,
            seeds.at(Site.CUT_PASTE),
            config.video.num_segments,
            # Of codes, a row along time spans several frames.
            config.video.tubelet * batch.frames.shape[1] // config.video.frames,
            shortest=config.data.cut_paste.shortest,
            longest=config.data.cut_paste.longest,
            # Saves memory: clips are most of a large batch, and this copy is not used again.
            in_place="clean" not in reads.views and batch.frames is not loaded.frames,
        )
        inputs |= {
            "blended": pasted.blended
            if compressed is None
            else compressed.pasted(pasted.blended, pasted.paste_mask, pasted.partner),
            "paste_mask": pasted.paste_mask,
            # Pairs are numbered per local batch; numbers must be unique over all ranks.
            "pair_ids": pasted.pair_ids + ranks.rank * len(batch),
        }
    if "crops" in reads.views:
        inputs["crops"] = batch.views[0].frames
    return ModelInputs(**inputs)


def _compressed(batch: ClipBatch, config: TaskConfig) -> PaletteFrames | None:
    """The clips of a batch that holds codes instead of frames; None: it holds frames."""
    if batch.palettes is None:
        return None
    video, grid = config.video, batch.frames.shape[1:]
    sides = (video.frames, video.image_size, video.image_size)
    block = PixelBlock(*(side // count for side, count in zip(sides, grid, strict=True)))
    return PaletteFrames.of(batch.frames, batch.palettes, block)
