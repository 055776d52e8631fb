"""`svilm bench ab`: two versions, two worker processes, interleaved pairs, one verdict."""
