"""Words of the page: what each picture shows and how to read it."""

ROOFLINE = (
    "How fast each call works over how much it has to compute per byte it cannot avoid to move. "
    "The solid line is what this very run measured the device to reach: one large product, one "
    "large copy. Dashed lines are 50 and 10 percent of it. Filled marks are this project's paths, "
    "rings are peers; only the FLOPs and bytes of the floor count, so work done twice shows as a "
    "lower mark. A mark above the slope had its data in a cache."
)
ROOFLINE_ALT = "Reached FLOP/s over FLOPs per byte, on logarithmic axes, under measured ceilings"
PEERS = (
    "Forward and backward in one call, all on the same tensors in one run. The first of each case "
    "is one; a bar to the right costs more, to the left less. A call without a figure says why."
)
PEERS_PAIRED = "Ratios of times are medians over rounds in which all providers took turns."
PEERS_APART = (
    "The medians were measured one after another, so that load which came and went is in their "
    "ratios: `svilm bench peers` measures in turns."
)
PEERS_ALT = "Bars of time and peak memory of each provider relative to the first, case by case"
SCALING = (
    "Forward and backward in one call at growing batches, all other sizes equal, on logarithmic "
    "axes: a line of slope one grows with the batch, one of slope two with its square."
)
SCALING_ALT = "Time and peak memory of a call against the batch, a line per provider"
HISTORY = (
    "Medians over the results of this machine, oldest first, those that changed most. A dashed "
    "line is a change of level that chance would show less than once in a thousand times. A "
    "history warns; it gates nothing, because processes of different days differ by more than "
    "the code."
)
HISTORY_ALT = "Medians over commits, with change points as dashed lines"
