"""Colours that colour-blind people tell apart, and that show on dark and on light.

From Okabe and Ito, Color Universal Design, 2008; without their black and yellow, which one of the two
backgrounds swallows. Where series outnumber them, the dash tells apart what the colour doesn't.
"""

from __future__ import annotations

ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILLION, PURPLE, GREY = "#D55E00", "#CC79A7", "#8C8C8C"

SOLID: tuple[int, ...] = ()
DASHED, DOTTED = (10, 6), (2, 5)
Style = tuple[str, tuple[int, ...]]

PERCENTILES = {"p50": SKY, "p95": ORANGE, "p99": VERMILLION, "mean": GREEN}
OUTCOMES = {"completed": GREEN, "dropped": ORANGE, "failed": VERMILLION}
DOMAINS = {"system": GREY, "cpu": ORANGE, "gpu": SKY, "mb": GREEN}
MODES = {
    "user": SKY,
    "system": ORANGE,
    "nice": BLUE,
    "iowait": VERMILLION,
    "interrupt": PURPLE,
    "steal": GREY,
}
STATES = {"used": ORANGE, "cached": SKY, "buffers": PURPLE, "free": GREY}
PRESSURES: dict[str, Style] = {
    f"{kind} {resource}": (colour, dash)
    for kind, dash in (("some", SOLID), ("full", DASHED))
    for resource, colour in (("cpu", SKY), ("memory", ORANGE), ("io", PURPLE))
}
DIRECTIONS = {"receive": SKY, "transmit": ORANGE}
RAILS: dict[str, Style] = {
    "EPS1": (ORANGE, SOLID),
    "EPS2": (ORANGE, DASHED),
    "ATX3V": (PURPLE, DASHED),
    "ATX5V": (GREEN, SOLID),
    "ATX5VSB": (GREEN, DASHED),
    "ATX12V": (PURPLE, SOLID),
    "PCIE1": (SKY, SOLID),
    "PCIE2": (SKY, DASHED),
    "PCIE3": (SKY, DOTTED),
    "HPWR1": (VERMILLION, SOLID),
    "HPWR2": (VERMILLION, DASHED),
}
WIRES: dict[str, Style] = {
    f"{connector}_W{n}": (colour, dash)
    for connector, dash in (("HPWR1", SOLID), ("HPWR2", DASHED))
    for n, colour in enumerate((ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE), 1)
}
