"""The options of an infonce call."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..checks import checked_workspace, whole_number
from .pairs import PairMode, checked_pair_mode

Ids = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class InfonceOptions:
    """The arguments of `api.infonce` with the same names; `ids` are (video ids, text ids)."""

    diagonal_offset: int = 0
    ids: Ids | None = None
    pair_mode: PairMode = "exclude"
    workspace_bytes: int | None = None
    backend: str | None = None

    @classmethod
    def checked(
        cls,
        name: str,
        diagonal_offset: int,
        ids: tuple[Tensor | None, Tensor | None],
        pair_mode: str,
        workspace_bytes: int | None,
        backend: str | None,
    ) -> InfonceOptions:
        """Options of checked types; `name` is the calling function, for messages.

        Raises:
            TypeError: not a whole number.
            ValueError: a value out of range, or ids of one side only.
        """
        videos, texts = ids
        if (videos is None) != (texts is None):
            raise ValueError(f"{name}: pass ids for videos and for texts, or neither")
        return cls(
            whole_number(name, "diagonal_offset", diagonal_offset),
            None if videos is None or texts is None else (videos, texts),
            checked_pair_mode(pair_mode),
            checked_workspace(name, workspace_bytes),
            backend,
        )

    @property
    def exclude(self) -> Ids | None:
        """The ids if `pair_mode` is `exclude`, else None."""
        return self.ids if self.pair_mode == "exclude" else None

    @property
    def share(self) -> Ids | None:
        """The ids if `pair_mode` is `share`, else None."""
        return self.ids if self.pair_mode == "share" else None

    @property
    def shared_lists(self) -> Ids | None:
        """The ids if two different lists share targets; columns then have separate targets."""
        return None if self.share is None or self.share[0] is self.share[1] else self.share

    def packed(self, default_workspace: int) -> tuple[Tensor | None, Tensor | None, int, str, int]:
        """The options as arguments of an operator; `unpacked` is the inverse."""
        ids = self.ids or (None, None)
        workspace = self.workspace_bytes or default_workspace
        return (*ids, self.diagonal_offset, self.pair_mode, workspace)

    @classmethod
    def unpacked(
        cls,
        video_ids: Tensor | None,
        text_ids: Tensor | None,
        diagonal_offset: int,
        pair_mode: PairMode,
        workspace_bytes: int,
    ) -> InfonceOptions:
        """The options from the arguments of an operator."""
        ids = None if video_ids is None or text_ids is None else (video_ids, text_ids)
        return cls(diagonal_offset, ids, pair_mode, workspace_bytes)
