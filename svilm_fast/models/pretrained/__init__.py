"""Weights of other libraries for our encoders: key maps, inflation over time, report."""
