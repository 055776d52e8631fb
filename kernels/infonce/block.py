"""A block of logits in plain PyTorch, by chunks of rows: log-sums, and gradients of the inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..checks import compute_dtype
from .options import InfonceOptions
from .pairs import diagonal_range, share_weights

DEFAULT_WORKSPACE_BYTES = 1 << 26
# Logits, probabilities, gradient and mask of a chunk are live simultaneously.
LIVE_MATRICES = 4
# Exponentials relative to one reference serve rows and columns while no log-sum is this far from
# it. The error of a log-sum grows with it: at 40 by 40 x 2^-24, that of a logit of 40.
_WIDEST = 40.0
_SMALLEST, _LARGEST = math.exp(-_WIDEST), math.exp(_WIDEST)
# Up to this scale the reference is 0, because unit rows have logits of at most the scale, and
# log-sums of n logits of at most log n more. Above, it is the largest logit.
_SHARP = 32.0


class LogitsBlock:
    """An [m, n] block of logits, computed one chunk of rows at a time."""

    def __init__(
        self, videos: Tensor, texts: Tensor, scale: Tensor, options: InfonceOptions
    ) -> None:
        self.dtype = compute_dtype(videos)
        self.videos, self.texts = videos, _in_dtype(texts, self.dtype)
        self.scale = _in_dtype(scale, self.dtype)
        # Products take alpha as a number where reading it does not stop a GPU; 0 stays out of them,
        # because its gradient is the sum that they give without it.
        self.alpha = (float(self.scale) if scale.is_cpu else 0.0) or 1.0
        self.rest = None if self.alpha != 1.0 else self.scale
        self.options = options
        self.weights = share_weights(*options.share, self.dtype) if options.share else None

    def chunks(self) -> list[slice]:
        rows, columns = self.videos.shape[0], self.texts.shape[0]
        row_bytes = LIVE_MATRICES * max(columns, 1) * self.dtype.itemsize
        workspace_bytes = self.options.workspace_bytes or DEFAULT_WORKSPACE_BYTES
        chunk_rows = max(1, workspace_bytes // row_bytes)
        starts = range(0, rows, chunk_rows)
        return [slice(start, min(start + chunk_rows, rows)) for start in starts]

    def logits(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """[c, n] scaled dot products, -inf where a pair is excluded; in `out` if it is given."""
        # s_ij = alpha a_ij
        videos = _in_dtype(_part(self.videos, rows), self.dtype)
        logits = out
        if logits is None:
            logits = videos.new_empty((videos.shape[0], self.texts.shape[0]))
        # With beta = 0 the scale is not read: as an input it lets forward-mode derivatives raise.
        torch.addmm(self.scale, videos, self.texts.T, beta=0, alpha=self.alpha, out=logits)
        if self.rest is not None:
            logits *= self.rest
        if self.options.exclude is None:
            return logits
        video_ids, text_ids = self.options.exclude
        same = video_ids[rows, None] == text_ids
        self._diagonal(same, rows)[0].fill_(False)
        return logits.masked_fill_(same, -torch.inf)

    def positives(self, logits: Tensor, rows: slice) -> Tensor:
        """[c] sums of the logits weighted by the targets; 0 for a row without a positive."""
        if self.weights is None:
            place, own = self._diagonal(logits, rows)
            if own == rows:
                return place.clone()
            found = logits.new_zeros(logits.shape[0])
            found[slice(own.start - rows.start, own.stop - rows.start)] = place
            return found
        target = self._shared(rows)
        return (logits * target).masked_fill_(target == 0, 0.0).sum(1)

    def add_positives(self, grad_logits: Tensor, rows: slice, gradient: Tensor | float) -> None:
        """Add g^p_i Y_ij [c, n] in place; gradient: of the positives, [m] or the same for all."""
        if self.weights is None:
            place, own = self._diagonal(grad_logits, rows)
            place.add_(gradient[own] if isinstance(gradient, Tensor) else gradient)
        else:
            if isinstance(gradient, Tensor):
                gradient = gradient[rows, None]
            grad_logits += self._shared(rows).mul_(gradient)

    def _shared(self, rows: slice) -> Tensor:
        """[c, n] weights of the positives: a row sums to 1, or to 0 if it has none."""
        assert self.options.share is not None
        assert self.weights is not None
        videos, texts = self.options.share
        return (videos[rows, None] == texts) * self.weights[rows, None]

    def _diagonal(self, matrix: Tensor, rows: slice) -> tuple[Tensor, slice]:
        """The positives' entries of a chunk [c, n], and their rows among all."""
        offset = self.options.diagonal_offset
        start, stop = diagonal_range(self.videos.shape[0], self.texts.shape[0], offset)
        start, stop = max(start, rows.start), min(stop, rows.stop)
        return matrix.diagonal(offset + rows.start), slice(start, max(start, stop))


def _in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # Even without a conversion, `to` and a slice cost as much as other small operators.
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _part(tensor: Tensor, rows: slice) -> Tensor:
    return tensor if rows.stop - rows.start == tensor.shape[0] else tensor[rows]


def log_sums(
    block: LogitsBlock, rows: slice, logits: Tensor, *, keep: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-sums of the rows and columns of a chunk [c + n], and what `dots_gradient` takes.

    The latter are powers and, with `keep`, factors: exp(logits - reference), and 1 / its sums
    [c + n]. Where a sum is out of range or not finite, or on a GPU, which would have to wait for
    the sums, they are the logits and None. Overwrites `logits`.
    """
    if logits.is_cpu:
        reference = 0.0 if abs(block.alpha) <= _SHARP else float(logits.amax())
        if reference:
            logits -= reference
        powers = logits.exp_()
        sums = torch.cat((powers.sum(1), powers.sum(0)))
        least, most = torch.aminmax(sums)
        if float(least) >= _SMALLEST and float(most) <= _LARGEST:
            factors = sums.reciprocal() if keep else None
            lines = sums.log_()
            return lines.add_(reference) if reference else lines, powers, factors
        logits = block.logits(rows, out=logits)
    return torch.cat((torch.logsumexp(logits, 1), torch.logsumexp(logits, 0))), logits, None


def powers_of(logits: Tensor, lines: Tensor) -> tuple[Tensor, Tensor | None]:
    """Powers and factors, as `log_sums` returns them, from the log-sums. Overwrites `logits`.

    The reference is the largest logit, so that no factor makes a small upstream gradient smaller.
    """
    if logits.is_cpu:
        reference = logits.amax()
        if float(reference) - float(lines.min()) <= _WIDEST:
            return logits.sub_(reference).exp_(), torch.exp(reference - lines)
    return logits, None


def dots_gradient(
    matrix: Tensor, factors: Tensor | None, lines: Tensor, upstream: Tensor | None
) -> Tensor:
    """g^r_i exp(s_ij - r_i) + g^c_j exp(s_ij - c_j) [c, n]; overwrites `matrix`.

    lines: log-sums r and c [c + n]; upstream: g^r and g^c [c + n], None for 1.
    """
    if factors is not None:
        if upstream is not None:
            factors *= upstream
        of_row, of_column = factors.split_with_sizes(matrix.shape)
        return (of_row[:, None] + of_column).mul_(matrix)
    # If all pairs of a line are excluded, its log-sum is -inf and its probabilities are 0, not
    # exp(-inf + inf).
    lines = lines.masked_fill(lines == -torch.inf, 0.0)
    row_lse, column_lse = lines.split_with_sizes(matrix.shape)
    found = (matrix - row_lse[:, None]).exp_()
    matrix.sub_(column_lse).exp_()
    if upstream is not None:
        of_row, of_column = upstream.split_with_sizes(matrix.shape)
        found *= of_row[:, None]
        matrix *= of_column
    return found.add_(matrix)


def input_gradients(
    chunks: Iterable[tuple[slice, Tensor]],
    needs: tuple[bool, bool, bool],
    videos: Tensor,
    texts: Tensor,
    alpha: float,
    rest: Tensor | float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of videos and texts from chunks of dS, and alpha sum_ij dS_ij a_ij.

    dV = alpha rest dS T, dT = alpha rest dS^T V, sum_ij dS_ij a_ij = sum_i <v_i, dS_i T>. Empty
    where not needed.
    """
    need_videos, need_texts, need_scale = needs
    dtype = compute_dtype(videos)
    factor = _in_dtype(texts, dtype)
    grad_videos = torch.empty_like(videos) if need_videos else videos.new_empty((0,))
    grad_texts = torch.empty_like(factor) if need_texts else factor.new_empty((0,))
    total: Tensor | None = None
    in_place = need_videos and videos.dtype == dtype
    for rows, grad_logits in chunks:
        rows_of_videos = _in_dtype(_part(videos, rows), dtype)
        if need_videos or need_scale:
            products = _part(grad_videos, rows) if in_place else torch.empty_like(rows_of_videos)
            _add_product(products, grad_logits, factor, alpha, first=True)
            if need_scale:
                part = (products * rows_of_videos).sum()
                total = part if total is None else total.add_(part)
            if rest is not None:
                products *= rest
            if need_videos and not in_place:
                grad_videos[rows] = products
        if need_texts:
            _add_product(grad_texts, grad_logits.T, rows_of_videos, alpha, first=rows.start == 0)
    if need_texts and rest is not None:
        grad_texts *= rest
    if total is None:
        total = factor.new_empty((0,))
    return grad_videos, _in_dtype(grad_texts, texts.dtype), total


def _add_product(out: Tensor, left: Tensor, right: Tensor, alpha: float, *, first: bool) -> None:
    torch.addmm(out, left, right, beta=0 if first else 1, alpha=alpha, out=out)
