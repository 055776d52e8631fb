"""One page from a result file: roofline, scaling with the batch, peers, history, every figure."""
