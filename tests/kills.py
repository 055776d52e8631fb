"""How often tests kill a program at random moments; SVILM_TEST_KILLS sets another number."""

import os

KILLS = int(os.environ.get("SVILM_TEST_KILLS", "8"))
