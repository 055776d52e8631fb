"""`svilm bench ab`: times two versions in interleaved pairs and decides whether head is slower."""
