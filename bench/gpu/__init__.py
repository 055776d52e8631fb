"""`make gpu`: every check of the ops that needs a GPU, in one command that always ends."""
