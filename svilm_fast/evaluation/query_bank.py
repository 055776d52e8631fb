"""The bank of training captions that QB-Norm normalises with, and where it comes from."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from svilm_fast.core.errors import UserError
from svilm_fast.core.text import counted
from svilm_fast.data.captions import pick_captions, row_record
from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError
from svilm_fast.data.lists import ListFile, is_list
from svilm_fast.data.samples import open_split

log = logging.getLogger(__name__)

MOST_CAPTIONS = 60_000
"""Captions of a bank; of more, so many at equal distances are taken."""


@dataclass(frozen=True)
class QueryBank:
    """Captions of a training split. name: the split's files. total: captions that it has."""

    name: str
    captions: list[str]
    total: int

    def facts(self, queries: Sequence[str]) -> dict[str, Any]:
        """What is stored of the bank. Raises UserError if it holds nothing but test captions."""
        test = set(queries)
        shared = sum(caption in test for caption in self.captions)
        if shared == len(self.captions):
            raise UserError(
                f"the bank of QB-Norm, {self.name}, holds only captions that are test queries: "
                "give the captions of the training split"
            )
        if shared:
            captions = counted(shared, "caption")
            log.warning("QB-Norm: its bank contains %s of the test queries", captions)
        digest = hashlib.sha256("\n".join(self.captions).encode())
        return {
            "source": self.name,
            "captions": len(self.captions),
            "of": self.total,
            "sha256": digest.hexdigest(),
            "test_queries_among_them": shared,
        }


def bank_line(facts: dict[str, Any]) -> str:
    """The facts of a bank as a line of the printed protocol."""
    some = f"{facts['captions']:,} of " if facts["captions"] < facts["of"] else ""
    return (
        f"QB-Norm bank: {some}{counted(facts['of'], 'caption')} of {facts['source']}, SHA-256 "
        f"{facts['sha256'][:12]}; {facts['test_queries_among_them']:,} of them are test queries"
    )


def read_bank(config: DataConfig, source: str | None, most: int = MOST_CAPTIONS) -> QueryBank:
    """Read the captions of a training split; its videos need not exist if it is a list.

    source: a list or shards; None: `data.train`. Raises UserError without captions.
    """
    given = config.train if source is None else source
    if given is None:
        raise UserError(
            "QB-Norm needs captions of a training split, and data.train is not set: give a list of "
            "them with --bank, or task.bank"
        )
    config = config.model_copy(update={"train": given})
    paths = [given] if isinstance(given, str) else list(given)
    captions = list(_captions(config, paths))
    name = ", ".join(os.path.basename(str(path).rstrip("/")) for path in paths)
    if not captions:
        raise UserError(f"{name}: no captions, which the bank of QB-Norm needs")
    total, wanted = len(captions), min(most, len(captions))
    return QueryBank(name, [captions[n * total // wanted] for n in range(wanted)], total)


def _captions(config: DataConfig, paths: Sequence[str]) -> Iterator[str]:
    if not all(map(is_list, paths)):
        yield from open_split(config, "train", nouns=False).captions()
        return
    for path in paths:
        for row in ListFile(path).rows():
            try:
                label = f"{path}, line {row.line}"
                yield from pick_captions(row_record(row), config.captions, label).texts
            except DataError as error:
                log.warning("QB-Norm: %s", error)
