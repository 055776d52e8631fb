"""The results of finished runs, in a folder of a campaign and in one that campaigns share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svilm_fast.core.errors import UserError
from svilm_fast.core.files import write_json
from svilm_fast.train.campaigns.jobs import TableJob


@dataclass(frozen=True)
class ResultStore:
    """Finds and writes results.

    out: folder of the campaign. A result there says that the run's own folder is there too.
    shared: folder that takes a copy of every result, for other machines; None: there is none.
    """

    out: Path
    shared: Path | None = None

    def path(self, job: TableJob) -> Path:
        """Return the file in the campaign's folder that keeps the result of a job."""
        return _file(self.out / "results", job)

    def made(self, job: TableJob) -> dict[str, Any] | None:
        """Return the result of a job whose run is in the campaign's folder, None if it is not."""
        return _read(self.path(job), job)

    def find(self, job: TableJob) -> dict[str, Any] | None:
        """Return the result of a job, wherever it ran, None if it has not finished."""
        found = self.made(job)
        if found is None and self.shared is not None:
            found = _read(_file(self.shared, job), job)
        return found

    def write(self, job: TableJob, result: dict[str, Any]) -> None:
        """Keep the result of a job that has finished in the campaign's folder."""
        for folder in (self.out / "results", self.shared):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                write_json(_file(folder, job), result)

    def needed(self, jobs: Iterable[TableJob]) -> set[TableJob]:
        """Return what must run: jobs without a result, and runs before them that are elsewhere."""
        found = set()
        for job in jobs:
            if self.find(job) is None:
                found.add(job)
                link = job.before
                while link is not None and self.made(link) is None:
                    found.add(link)
                    link = link.before
        return found


def _file(folder: Path, job: TableJob) -> Path:
    return folder / f"{job.folder.name}.json"


def _read(path: Path, job: TableJob) -> dict[str, Any] | None:
    """Return the content if it is the result of the same inputs. Raises UserError if damaged."""
    try:
        kept = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it, and the run is collected again"
        ) from error
    return kept if kept.get("identity") == job.identity else None
