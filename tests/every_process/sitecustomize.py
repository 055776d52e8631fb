"""Python runs this at the start of every process of `tests/instruction_sets.py`."""

from tests import bars

bars.install()
