"""The results of finished runs, in a folder of a campaign and in one that campaigns share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svilm_fast.core.errors import UserError
from svilm_fast.core.files import write_atomically, write_json
from svilm_fast.train.campaigns.jobs import TableJob


@dataclass(frozen=True)
class ResultStore:
    """Finds and writes results.

    out: folder of the campaign.
    shared: folder that takes a copy of every result, for other machines; None: there is none.
    """

    out: Path
    shared: Path | None = None

    @property
    def kept(self) -> Path:
        """The folder of the campaign's results."""
        return self.out / "results"

    def path(self, job: TableJob) -> Path:
        """Return the file in the campaign's folder that keeps the result of a job."""
        return _file(self.kept, job)

    def made(self, job: TableJob) -> dict[str, Any] | None:
        """Return the result of a job whose run is in the campaign's folder, None if it is not."""
        if job.trains and not job.folder.is_dir():
            return None
        return _read(self.path(job), job)

    def find(self, job: TableJob) -> dict[str, Any] | None:
        """Return the result of a job, wherever it ran, None if it has not finished.

        The shared one comes first, so that a table is the same on all machines that share it.
        """
        found = None if self.shared is None else _read(_file(self.shared, job), job)
        return _read(self.path(job), job) if found is None else found

    def write(self, job: TableJob, result: dict[str, Any]) -> None:
        """Keep the result of a job that has just finished in the campaign's folder."""
        self.path(job).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path(job), result)
        self.share(job)

    def share(self, job: TableJob) -> None:
        """Copy the result of a job from the campaign's folder to the shared one, if it lacks it."""
        if self.shared is None or _read(_file(self.shared, job), job) is not None:
            return
        if (result := _read(self.path(job), job)) is not None:
            self.shared.mkdir(parents=True, exist_ok=True)
            line = json.dumps(result) + "\n"  # thousands of queries: a line each would fill a diff
            write_atomically(_file(self.shared, job), line.encode())

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
            f"{path} is damaged ({error}); remove it, and the run is collected or made again"
        ) from error
    if not isinstance(kept, dict):
        raise UserError(
            f"{path} is not a result of `svilm ablate`; remove it, and the run is collected or "
            "made again"
        )
    return kept if kept.get("identity") == job.identity else None
