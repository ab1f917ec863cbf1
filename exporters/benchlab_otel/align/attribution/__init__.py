"""The measurement core: joules of frames and stages from a meter slower than a frame (docs/measurement.md).

`attribute` for a whole run, `stream` as data come in, `meters` for all domains at once; the others are
its parts, in this order: counters, matrix, windows, overlap, work, design, banded, gls, reml, fit, condition,
conserve, resolve, kernel_map, identify, selfcheck, tails, misfit, block.
"""
