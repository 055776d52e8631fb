"""Where the time of a call or a step goes: traces, tables of them, and the memory over time."""
