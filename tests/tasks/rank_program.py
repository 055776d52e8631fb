"""Trains a recipe as one of several ranks: `rank_program.py RECIPE SETTING...`."""

from __future__ import annotations

import sys

from svilm_fast.train.config.load import load_config
from svilm_fast.train.run.session import Start, train

if __name__ == "__main__":
    assert train(load_config(sys.argv[1], sys.argv[2:]), Start()).finished
