"""`emulate`: a BENCHLAB device on a pty, until ctrl-C."""

from __future__ import annotations

import math
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchlab_otel import wire
from benchlab_otel.cli import options
from benchlab_otel.cli.errors import UserError
from benchlab_otel.simulate.device import Emulator, Meter
from benchlab_otel.simulate.truth import Load, Truth

MAX_WATTS = 5000.0  # readers take no more for true
DEFAULT_WATTS = ("EPS1=45", "ATX12V=15", "PCIE1=35")


class Product(StrEnum):
    """The devices that can be emulated."""

    original = "original"
    benchlab2 = "benchlab2"


class Fault(StrEnum):
    """What can go wrong with the emulated device."""

    unplug = "unplug"
    silent = "silent"
    late = "late"
    garbled = "garbled"
    short = "short"
    welcome = "welcome"


def command(
    product: Annotated[Product, typer.Option(help="Which device.")] = Product.original,
    firmware: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Firmware version (default: the newest).")
    ] = None,
    watts: Annotated[
        list[str] | None,
        typer.Option(metavar="RAIL=W", help=f"Power of a rail (default: {' '.join(DEFAULT_WATTS)})."),
    ] = None,
    noise: Annotated[
        float,
        typer.Option(metavar="W", min=0, max=MAX_WATTS, help="Noise of each reading, standard deviation."),
    ] = 0.0,
    width_ms: Annotated[
        float, typer.Option(metavar="MS", min=0, max=1e6, help="The meter averages over this time.")
    ] = 0.0,
    lag_ms: Annotated[
        float, typer.Option(metavar="MS", min=0, max=1e6, help="The meter reports the past by this much.")
    ] = 0.0,
    delay_ms: Annotated[
        float, typer.Option(metavar="MS", min=0, max=1e6, help="Time from request to answer.")
    ] = 0.0,
    jitter_ms: Annotated[
        float, typer.Option(metavar="MS", min=0, max=1e6, help="Up to this much more, at random.")
    ] = 0.0,
    fault: Annotated[
        Fault | None,
        typer.Option(metavar="FAULT", help=f"Goes wrong in this way, again and again: {', '.join(Fault)}."),
    ] = None,
    fault_every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=1e6, help="From one fault to the next.")
    ] = 10.0,
    fault_for: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=1e6, help="How long each fault lasts.")
    ] = 2.0,
    path: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where the port appears (default: a new folder).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="For the same noise and device id each time.")
    ] = None,
) -> None:
    """A BENCHLAB device on a pty; prints its path and runs until ctrl-C.

    \b
    Examples:
      benchlab-otel emulate --product benchlab2 --watts EPS1=80 --watts HPWR1=240
      benchlab-otel emulate --path /tmp/ttyBENCHLAB --fault unplug
    """
    meter = Meter(lag_ms / 1e3, width_ms / 1e3, noise, delay_ms / 1e3, jitter_ms / 1e3)
    try:
        truth = Truth(Load(base=dict(_rail(text) for text in watts or DEFAULT_WATTS)))
        emulator = Emulator(truth, product.value, firmware, meter, path=_free(path), seed=seed)
    except (LookupError, ValueError) as error:
        raise UserError(str(error)) from None
    stop = options.told_to_end()
    with emulator:
        print(emulator.path, flush=True)
        print(
            f"{emulator.layout.product} firmware {emulator.layout.firmware}, simulated. Read it, say, with\n"
            f"  BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS={emulator.path} benchlab-otel devices\n"
            "End with ctrl-C.",
            file=sys.stderr,
        )
        while not stop.wait(fault_every if fault else None):
            if fault:
                _suffer(emulator, fault, fault_for, stop)


def _rail(text: str) -> tuple[str, float]:
    rail, _, power = text.partition("=")
    try:
        watts = float(power)
    except ValueError:
        watts = math.nan
    if not 0.0 <= watts <= MAX_WATTS:
        rails = ", ".join(wire.RAILS)
        raise UserError(
            f"--watts {text}: expected RAIL=W up to {MAX_WATTS:g} W, such as EPS1=45; rails: {rails}"
        )
    return rail.upper(), watts


def _free(path: Path | None) -> Path | None:
    """The path, unless something is there that is not left over from an emulator that was killed."""
    if path and (path.exists() or path.is_symlink()) and not _is_left_over(path):
        raise UserError(f"--path {path}: there is a file already; choose another path")
    if path and not path.parent.is_dir():
        raise UserError(f"--path {path}: there is no folder {path.parent}")
    return path.absolute() if path else None


def _is_left_over(path: Path) -> bool:
    """Whether it is a link to a pty that is gone."""
    return path.is_symlink() and path.readlink().parent == Path("/dev/pts") and not path.exists()


def _suffer(emulator: Emulator, fault: Fault, seconds: float, stop: threading.Event) -> None:
    """Has the fault for a while."""
    print(f"{fault.value} for {seconds} s", file=sys.stderr, flush=True)
    faults = emulator.faults
    match fault:
        case Fault.unplug:
            emulator.unplug()
            stop.wait(seconds)
            emulator.replug()
            return
        case Fault.silent:
            faults.silent = True
        case Fault.late:
            faults.late = 1.0
        case Fault.garbled:
            faults.garbled = "noise"
        case Fault.short:
            faults.short = 1
        case Fault.welcome:
            faults.welcome = True
    stop.wait(seconds)
    emulator.faults = type(faults)()
