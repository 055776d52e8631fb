"""The index of a data set: one file of columns that every process maps and none copies."""
