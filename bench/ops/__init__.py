"""Times every registered op over its table of shapes, beside its peers, in one run."""
