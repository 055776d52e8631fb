"""Ways to start a run on one node and on many, and the trial of two nodes on one machine."""
