"""Looking at a run: pictures of what the model sees, and one page that holds them."""

from svilm_fast.report.page import build_report
from svilm_fast.report.probe import ClipProbe, probe_clips, read_clips

__all__ = ["ClipProbe", "build_report", "probe_clips", "read_clips"]
