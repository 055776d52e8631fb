"""Captions of the page: what each picture shows and how to read it."""

ROOFLINE = (
    "FLOP/s of each call over its FLOPs per byte that it must at least move. The solid line shows "
    "the ceilings measured in the same run: one large product, one large copy. Dashed lines are 50 "
    "and 10 percent of it. Filled marks are this project's paths, rings are peers. Only the FLOPs "
    "and bytes of the floor count, so recomputation lowers a mark. A mark above the slope had its "
    "data in a cache."
)
ROOFLINE_ALT = "Reached FLOP/s over FLOPs per byte, on logarithmic axes, under measured ceilings"
PEERS = (
    "Forward and backward in one call, all on the same tensors in one run, relative to the first "
    "provider of each case. A bar to the right costs more, to the left less. A call without a "
    "figure shows the reason."
)
PEERS_PAIRED = "Ratios of times are medians over interleaved rounds of all providers."
PEERS_APART = (
    "The medians were measured one after another, so a change of load affects their ratios; "
    "`svilm bench peers` interleaves the providers."
)
PEERS_ALT = "Bars of time and peak memory of each provider relative to the first, case by case"
CONSTANTS = (
    "Numbers that the static model assumes about an H200 (pessimistic/central/optimistic), and "
    "what `make gpu` measured first: the median, with the range of the middle 60 percent of the "
    "samples."
)
SCALING = (
    "Forward and backward in one call at growing batches, all other sizes equal, on logarithmic "
    "axes: a line of slope one grows with the batch, one of slope two with its square."
)
SCALING_ALT = "Time and peak memory of a call against the batch, a line per provider"
HISTORY = (
    "Medians over the results of this machine, oldest first, for the benchmarks that changed most. "
    "A dashed line marks a change of level with p below 0.001. The history only warns: results of "
    "different days also differ for other reasons than the code."
)
HISTORY_ALT = "Medians over commits, with change points as dashed lines"
