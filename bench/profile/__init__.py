"""Profiles of a call or a step: traces, their tables, and memory over time."""
