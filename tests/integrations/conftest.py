"""An exported model without training."""

from __future__ import annotations

from pathlib import Path

import pytest

from svilm_fast.train.run.export import export_run
from tests.untrained_run import make_untrained_run


@pytest.fixture(scope="package")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("integrations")
    export_run(make_untrained_run(folder / "run").root, folder / "model", licence="mit")
    return folder / "model"
