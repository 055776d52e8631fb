"""One page from a result file: roofline, growth with the batch, peers, history, every figure."""
