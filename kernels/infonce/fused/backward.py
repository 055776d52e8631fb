"""Host side of backward: per chunk of rows, the gradient of the dot products and two products."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ...backend import gluon_wanted
from ...device import traits
from ...launch import launch, strip_tiles
from ...operators import gradient_buffers
from ...primitives import accumulate_product
from .finish import total_kernel
from .forward import CallTensors, Logs, gluon_obstacle, line_blocks
from .gradient import diagonal_kernel, dots_gradient_kernel, finish_gradient_kernel
from .layout import (
    LINES,
    InfonceTile,
    backward_plan,
    padded_columns,
    product_options,
    tile_of,
    tile_operands,
    tile_target,
)
from .resident import resident_gradient_kernel, resident_tile

# The factor that scales the gradient into float16's normal range: |dots gradient| is at most 3 x
# the largest upstream gradient, and 3 x 2^14 < 65,504.
LIFT = 2.0**14
# Down to this number, the reciprocal is finite and the quotient by LIFT is not subnormal.
SMALLEST_FACTOR = 2.0**-110
TILE_GROUP = 8
DIAGONAL_ROWS = 256
# Parts of a sum start at multiples of 128 bytes.
ALIGNED_COLUMNS = 64
FINISH_ELEMENTS = 4096


class Upstream(NamedTuple):
    """Upstream gradients of row log-sums, column log-sums and positives."""

    rows: Tensor
    columns: Tensor
    positives: Tensor


class InfonceGradients(NamedTuple):
    """Gradients of the inputs; empty tensors for those that are not needed."""

    videos: Tensor
    texts: Tensor
    scale: Tensor


def split_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out [parts, m, D] = left [m, k] @ right [k, D] in parts of k, to be added in order.

    More parts fill a GPU that has more SMs than `out` has tiles. Part 0 also takes the remainder.
    """
    splits = out.shape[0]
    depth = left.shape[1] // splits // ALIGNED_COLUMNS * ALIGNED_COLUMNS
    whole = splits * depth
    if splits == 1:
        accumulate_product(out[0], left, right, first=True)
        return
    lefts = left[:, :whole].unflatten(1, (splits, depth)).transpose(0, 1)
    accumulate_product(out, lefts, right[:whole].unflatten(0, (splits, depth)), first=True)
    if whole < left.shape[1]:
        accumulate_product(out[0], left[:, whole:], right[whole:], first=False)


def rows_per_finish(dim: int) -> int:
    """Rows per program of `finish_gradient_kernel`.

    The number divides the rows of a tile, so that the partial sums of all chunks are contiguous.
    """
    return min(64, FINISH_ELEMENTS // triton.next_power_of_2(dim))


def backward(
    block: CallTensors,
    logs: Logs,
    pairs: int,
    upstream: Tensor | Upstream,
    needs: tuple[bool, bool, bool],
    workspace_bytes: int,
) -> InfonceGradients:
    """Gradients of the loss of `pairs` pairs (upstream is a 0-dim tensor), or of the log-sums.

    The gradient of the scale is that of the log-sums and logits, not of their values minus the
    scale.
    """
    videos, texts = block.videos, block.texts
    need_videos, need_texts, need_scale = needs
    # dalpha = sum_i <v_i, dV_i> / alpha, which needs no second pass over the tiles.
    dot_texts = need_scale and need_texts and not need_videos
    dot_videos = need_scale and not dot_texts
    sum_videos = need_videos or dot_videos
    rows, columns, dim = videos.shape[0], texts.shape[0], videos.shape[1]
    tile = tile_of(videos)
    half = videos.dtype != torch.float32
    product_dtype = torch.float16 if half else torch.float32
    needs_products = (sum_videos, need_texts)
    chunk, splits = backward_plan(videos, texts, tile, needs_products, workspace_bytes)
    held = min(chunk, rows)
    buffer = videos.new_empty((held, padded_columns(columns)), dtype=product_dtype)
    video_factors = videos.to(product_dtype) if need_texts else videos
    text_factors = texts.to(product_dtype) if sum_videos else texts
    video_sums = videos.new_empty((splits * held * dim if sum_videos else 0,), dtype=torch.float32)
    text_sums = videos.new_empty((columns if need_texts else 0, dim), dtype=torch.float32)
    finish_rows = rows_per_finish(dim)
    number = -(-(rows if dot_videos else columns) // finish_rows)
    parts = videos.new_empty((number if need_scale else 0,), dtype=torch.float32)
    gradients = InfonceGradients(*gradient_buffers(needs, (videos, texts, block.scale)))
    step = Step(block, logs, upstream, pairs, LIFT if half else 1.0, tile)
    for start in range(0, rows, chunk):
        stop = min(start + chunk, rows)
        step.write_dots_gradient(buffer, start, stop)
        gradient = buffer[: stop - start, :columns]
        if sum_videos:
            sums = video_sums[: splits * (stop - start) * dim].view(splits, stop - start, dim)
            split_product(sums, gradient, text_factors)
            step.finish(
                sums,
                videos[start:stop],
                gradients.videos[start:stop] if need_videos else None,
                parts[start // finish_rows :] if dot_videos else None,
            )
        if need_texts:
            accumulate_product(text_sums, gradient.T, video_factors[start:stop], first=start == 0)
    if need_texts:
        step.finish(text_sums[None], texts, gradients.texts, parts if dot_texts else None)
    if need_scale:
        launch(total_kernel, (1,), parts, gradients.scale, number, 1.0, BLOCK=1024)
    return gradients


class Step:
    """The arguments that the launches of one backward pass share."""

    def __init__(
        self,
        block: CallTensors,
        logs: Logs,
        upstream: Tensor | Upstream,
        pairs: int,
        lift: float,
        tile: InfonceTile,
    ) -> None:
        self.block, self.logs, self.pairs = block, logs, pairs
        self.lift, self.tile = lift, tile
        self.loss = isinstance(upstream, Tensor)
        self.line_upstream: Tensor | None = None
        self.positive_upstream: Tensor | None = None
        self.factors = logs.factors
        if isinstance(upstream, Tensor):
            self.factor = upstream
        else:
            # The upstream gradients are divided by their largest magnitude to fit float16.
            self.factor = torch.cat(upstream).abs().amax().clamp(min=SMALLEST_FACTOR)
            unit = self.factor.reciprocal()
            rows, columns = upstream.rows.shape[0], upstream.columns.shape[0]
            self.line_upstream = torch.zeros_like(logs.lines)
            self.line_upstream[:rows] = upstream.rows
            self.line_upstream[line_blocks(rows) * LINES :][:columns] = upstream.columns
            self.line_upstream *= unit
            self.positive_upstream = upstream.positives * unit
            self.factors = self.factors * self.line_upstream
        self.resident = resident_tile(block.videos, block.video_ids)
        self.operands = tile_operands(block.videos, block.texts, self.resident or tile)
        # Forward has said why a call keeps the plain kernels.
        self.gluon = gluon_wanted(block.videos.device) and gluon_obstacle(block) is None

    def write_dots_gradient(self, buffer: Tensor, start: int, stop: int) -> None:
        """Write rows [start, stop) of the gradient of the dot products, times `lift`."""
        block = self.block
        columns = block.texts.shape[0]
        sizes = (start, stop, block.videos.shape[0], columns, block.offset)
        row_blocks = line_blocks(block.videos.shape[0])
        if not (self.gluon and self._written_by_gluon(buffer, (*sizes, row_blocks))):
            if self.resident is None:
                self._write_streamed(buffer, sizes, row_blocks)
            else:
                self._write_resident(buffer, self.resident, sizes, row_blocks)
        shared = block.pair_options()["SHARE"]
        if shared or start + block.offset >= columns or stop + block.offset <= 0:
            return
        launch(
            diagonal_kernel,
            (-(-(stop - start) // DIAGONAL_ROWS),),
            self.logs.others,
            self.line_upstream,
            self.positive_upstream,
            buffer,
            *sizes,
            row_blocks,
            buffer.stride(0),
            self.lift,
            BLOCK=DIAGONAL_ROWS,
            LINES=LINES,
            LOSS=self.loss,
        )

    def _written_by_gluon(self, buffer: Tensor, sizes: tuple[int, ...]) -> bool:
        """Whether the chunk is large enough for the Gluon kernel, which has then written it."""
        from .gluon_gradient import fills_programs, launch_gradient

        block, logs = self.block, self.logs
        start, stop, *_ = sizes
        if not fills_programs(block.videos, block.texts, stop - start):
            return False
        launch_gradient(
            block.videos,
            block.texts,
            block.scale,
            (logs.lines, self.factors, logs.sound, self.line_upstream),
            buffer,
            sizes,
            self.lift,
        )
        return True

    def _write_streamed(
        self, buffer: Tensor, sizes: tuple[int, int, int, int, int], row_blocks: int
    ) -> None:
        block, tile, logs = self.block, self.tile, self.logs
        start, stop, _, columns, _ = sizes
        tiles = -(-(stop - start) // tile.rows) * -(-columns // tile.columns)
        launch(
            dots_gradient_kernel,
            (tile.programs(tiles, block.videos),),
            *self.operands,
            block.scale,
            logs.lines,
            self.factors,
            logs.sound,
            block.video_ids,
            block.text_ids,
            block.weights,
            self.line_upstream,
            self.positive_upstream,
            tile_target(buffer, tile),
            *sizes,
            row_blocks,
            buffer.stride(0),
            self.lift,
            DEPTH=block.videos.shape[1],
            LINES=LINES,
            TILE_GROUP=TILE_GROUP,
            LOSS=self.loss,
            FLATTEN=tile.blocks > 0,
            **tile.options(),
            **block.pair_options(),
            **product_options(block.videos),
            **({} if block.video_ids is not None else tile.register_limit()),
        )

    def _write_resident(
        self,
        buffer: Tensor,
        tile: InfonceTile,
        sizes: tuple[int, int, int, int, int],
        row_blocks: int,
    ) -> None:
        block, logs = self.block, self.logs
        start, stop, rows, columns, offset = sizes
        row_tiles, column_tiles = -(-(stop - start) // tile.rows), -(-columns // tile.columns)
        strip = strip_tiles(row_tiles, column_tiles, traits(block.videos.device).sm_count)
        launch(
            resident_gradient_kernel,
            (row_tiles * -(-column_tiles // strip),),
            *self.operands,
            block.scale,
            logs.lines,
            self.factors,
            logs.sound,
            self.line_upstream,
            tile_target(buffer, tile),
            start,
            rows,
            columns,
            offset,
            row_blocks,
            row_tiles,
            strip,
            self.lift,
            LINES=LINES,
            LOSS=self.loss,
            **tile.resident_options(block.videos),
        )

    def finish(
        self, sums: Tensor, embeddings: Tensor, out: Tensor | None, parts: Tensor | None
    ) -> None:
        """Scale and cast fp32 sums [splits, rows, D]; sum their products with the embeddings."""
        splits, rows, dim = sums.shape
        launch(
            finish_gradient_kernel,
            (-(-rows // rows_per_finish(dim)),),
            sums,
            embeddings,
            out,
            self.factor,
            self.block.scale,
            parts,
            rows,
            splits,
            self.pairs,
            self.lift,
            D=dim,
            ROWS=rows_per_finish(dim),
            BLOCK_D=triton.next_power_of_2(dim),
            LOSS=self.loss,
            WRITE=out is not None,
            DOT=parts is not None,
            num_warps=4,
        )
