"""Readers of frames with libraries other than PyAV; each is loaded only where it is asked for."""
