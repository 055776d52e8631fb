"""What a call of the op says besides its embeddings and its scale."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..checks import checked_workspace, whole_number
from .pairs import PairMode, checked_pair_mode

Ids = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class InfonceOptions:
    """Attributes as the arguments of `api.infonce`, but `ids`: those of videos and of texts."""

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
        """Options in their own types; `name` is the caller's, for messages.

        Raises:
            TypeError: a number that is none.
            ValueError: a value out of range, or ids of one side alone.
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
        """The ids, if pairs of equal ids leave the softmax."""
        return self.ids if self.pair_mode == "exclude" else None

    @property
    def share(self) -> Ids | None:
        """The ids, if pairs of equal ids share the target."""
        return self.ids if self.pair_mode == "share" else None

    @property
    def shared_lists(self) -> Ids | None:
        """The ids, if two lists of them share targets: columns then have targets of their own."""
        return None if self.share is None or self.share[0] is self.share[1] else self.share

    def packed(self, default_workspace: int) -> tuple[Tensor | None, Tensor | None, int, str, int]:
        """As the operators' schemas take them; `unpacked` is the way back."""
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
        """The options of an operator's arguments."""
        ids = None if video_ids is None or text_ids is None else (video_ids, text_ids)
        return cls(diagonal_offset, ids, pair_mode, workspace_bytes)
