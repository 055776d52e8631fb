"""Shared foundations: settings, errors, printing, random numbers, trace ranges."""
