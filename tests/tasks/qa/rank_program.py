"""Fine-tunes question answering as one of several ranks: `rank_program.py SETTING...`."""

from __future__ import annotations

import sys

from svilm_fast.train.config.load import load_config
from svilm_fast.train.run.session import Start, train

if __name__ == "__main__":
    assert train(load_config("tasks/qa", sys.argv[1:]), Start()).finished
