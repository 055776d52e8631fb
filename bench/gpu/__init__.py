"""`make gpu`: all GPU checks of the ops in one command with a time limit."""
