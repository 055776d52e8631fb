"""An untrained run and its exported model."""

from __future__ import annotations

from pathlib import Path

import pytest

from svilm_fast.train.run.export import export_run
from tests.untrained_run import make_untrained_run


@pytest.fixture(scope="package")
def run(tmp_path_factory) -> Path:
    # The margin leaves a border outside the crop, which another crop would show.
    folder = tmp_path_factory.mktemp("inference") / "run"
    return make_untrained_run(folder, "data.resize_margin=1.2").root


@pytest.fixture(scope="package")
def exported(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_run(run, folder)
    return folder
