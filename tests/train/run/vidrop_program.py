"""One rank of test_vidrop_run.py: `svilm pretrain` with the arguments of each line of a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from svilm_fast.train.pretrain import main

if __name__ == "__main__":
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        code = main(arguments)
        if code:
            sys.exit(code)
