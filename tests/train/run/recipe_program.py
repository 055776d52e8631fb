"""Trains a recipe as one of several ranks: RECIPE, new or resume, WEIGHTS, SETTING...

WEIGHTS: a portable checkpoint that the run starts from, or none.
"""

from __future__ import annotations

import sys
from pathlib import Path

from svilm_fast.train.config.load import load_config
from svilm_fast.train.run.session import Start, train

if __name__ == "__main__":
    recipe, start, weights, *settings = sys.argv[1:]
    source = None if weights == "none" else Path(weights)
    train(load_config(recipe, settings), Start(resume=start == "resume", weights_from=source))
