"""`device`: a BENCHLAB's name, fans, lights and calibration, read and written once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec
import typer

from benchlab_otel import wire
from benchlab_otel.cli import options
from benchlab_otel.cli.errors import Failure, UserError
from benchlab_otel.sources import benchlab
from benchlab_otel.sources.benchlab_port import Port
from benchlab_otel.sources.benchlab_settings import Settings, Values, pack, unpack
from benchlab_otel.sources.benchlab_undo import ByUid, changes_of, is_factorys
from benchlab_otel.sources.reading import SourceError

command = typer.Typer(no_args_is_help=True)

PortOption = Annotated[
    str | None, typer.Option("--port", metavar="PATH", help="Which device, where there are several.")
]
Destructive = Annotated[
    bool, typer.Option("--destructive", help="Allow it; its UID is asked for before it is done.")
]
_CHANNELS = ("Vin", "Vdd", "Vref", "Ts", "Tamb", "Hum", "PowerReadingVoltage", "PowerReadingCurrent")


@command.callback()
def _device() -> None:
    """Settings of a BENCHLAB. What is written is read back; `store` keeps it for the next start.

    A device that is being read belongs to that process: its rules are sources.benchlab.control.

    \b
    Examples:
      benchlab-otel device name "Bench 3"
      benchlab-otel device fan 1 FanMode=fixed FixedDuty=60
    """
    options.set_up_logging()


@command.command()
def name(
    new: Annotated[str | None, typer.Argument(metavar="NAME", help="The new name (at most 30 B).")] = None,
    port: PortOption = None,
    config: options.ConfigFile = None,
) -> None:
    """Print the device's name, or give it a new one.

    \b
    Example:
      benchlab-otel device name "Bench 3"
    """
    with _opened(port, config) as (settings, _):
        if new is not None:
            settings.set_name(new)
        print(settings.name())


@command.command()
def fan(
    number: Annotated[int, typer.Argument(metavar="FAN", min=1, max=9, help="Which fan, from 1.")],
    change: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIELD=VALUE", help="What to change (default: nothing)."),
    ] = None,
    profile: Annotated[int, typer.Option(min=0, max=2, help="Which profile.")] = 0,
    port: PortOption = None,
    config: options.ConfigFile = None,
) -> None:
    """Print the profile of a fan as JSON, or change it. Temperatures are tenths of a degree.

    \b
    Examples:
      benchlab-otel device fan 1
      benchlab-otel device fan 1 FanMode=fixed FixedDuty=60
      benchlab-otel device fan 2 FanMode=temp_control TempSource=ts1
    """
    with _opened(port, config) as (settings, _):
        enums = {"FanMode": "FAN_MODE", "TempSource": "TEMP_SRC", "FanStop": "FAN_STOP"}
        before = settings.fan(profile, number - 1)
        if change:
            before = _changed(settings.layout, "FanConfigStruct", before, change, enums)
            settings.set_fan(profile, number - 1, before)
        _print(settings.layout, "FanConfigStruct", before, enums)


@command.command()
def rgb(
    change: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIELD=VALUE", help="What to change (default: nothing)."),
    ] = None,
    profile: Annotated[int, typer.Option(min=0, max=1, help="0 for work, 1 for play.")] = 0,
    port: PortOption = None,
    config: options.ConfigFile = None,
) -> None:
    """Print the lights' profile as JSON, or change it.

    \b
    Example:
      benchlab-otel device rgb Mode=single_color Red=0 Green=255 Blue=0
    """
    with _opened(port, config) as (settings, _):
        enums = {"Mode": "RGB_MODE", "Direction": "RGB_DIRECTION"}
        before = settings.rgb(profile)
        if change:
            before = _changed(settings.layout, "RGBConfigStruct", before, change, enums)
            settings.set_rgb(profile, before)
        _print(settings.layout, "RGBConfigStruct", before, enums)


@command.command()
def calibration(
    compare: Annotated[
        bool, typer.Option("--compare", help="With the factory's, which is in force for a moment.")
    ] = False,
    table: Annotated[
        str | None, typer.Option("--write", metavar="HEX", help="Put this table in force, until a restart.")
    ] = None,
    store: Annotated[bool, typer.Option("--store", help="Keep the table in force as the user's.")] = False,
    destructive: Destructive = False,
    port: PortOption = None,
    config: options.ConfigFile = None,
) -> None:
    """Print the calibration in force as JSON.

    Of each channel the offset, and the gain's offset in 1/4096.

    \b
    Examples:
      benchlab-otel device calibration --compare
      benchlab-otel device calibration --store --destructive
    """
    with _opened(port, config) as (settings, identity):
        if store:
            _confirm(identity, destructive, "overwrites the user's calibration")
        if table is not None:
            settings.set_calibration(_bytes(table))
        in_force = settings.calibration()
        shown: dict[str, object] = {"valid": benchlab.calibration_valid(in_force)}
        if compare and (factory := _compared(settings, identity, config)) is not None:
            shown["factory"] = factory
        if store:
            settings.store_calibration()
        fields = unpack(settings.layout, "CalibrationStruct", in_force)
        shown |= {channel: fields[channel] for channel in _CHANNELS}
        print(msgspec.json.encode(shown).decode())


def _compared(settings: Settings, identity: benchlab.Identity, config: options.ConfigFile) -> bool | None:
    """Whether the factory's table is in force; where that fails, the one before is put back all the same."""
    options.told_to_end()  # it ends when the table of before is in force again
    changed: ByUid = {}
    try:
        return is_factorys(settings, changes_of(changed, identity.uid, settings))
    except SourceError:
        settings.port.close()
        benchlab.put_back_left(options.settings(config).sources.benchlab, settings.port.path, changed)
        raise


def _bytes(digits: str) -> bytes:
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise UserError("--write: expected a table as hexadecimal digits") from None


@command.command()
def store(port: PortOption = None, config: options.ConfigFile = None) -> None:
    """Keep name, fans and lights for the next start."""
    with _opened(port, config) as (settings, _):
        settings.store()


@command.command()
def restore(port: PortOption = None, config: options.ConfigFile = None) -> None:
    """Back to the name, fans and lights that are kept.

    For after a `run` with control that was killed. Not with ORIGINAL firmware before 4 and BENCHLAB 2
    firmware before 5: set fans and lights with `device fan` and `device rgb` there.
    """
    with _opened(port, config) as (settings, _):
        settings.restore()


@command.command()
def reset(
    destructive: Destructive = False,
    port: PortOption = None,
    config: options.ConfigFile = None,
) -> None:
    """Restart the device; settings that are not stored are lost."""
    _restart(wire.RESET, "restarts the device", destructive, port, config)


@command.command()
def bootloader(
    destructive: Destructive = False,
    port: PortOption = None,
    config: options.ConfigFile = None,
) -> None:
    """Start the device's bootloader; that ends measuring.

    Until it is plugged in again or flashed.
    """
    _restart(
        wire.BOOTLOADER, "ends measuring until the device is plugged in again", destructive, port, config
    )


def _restart(
    opcode: int, effect: str, destructive: bool, port: str | None, config: options.ConfigFile
) -> None:
    with _opened(port, config) as (settings, identity):
        _confirm(identity, destructive, effect)
        settings.restart(opcode)


def _confirm(identity: benchlab.Identity, allowed: bool, effect: str) -> None:
    """Has the UID typed; UserError where the flag is missing or the UID wrong."""
    uid = identity.uid.hex().upper()
    if not allowed:
        raise UserError(f"this {effect} ({identity}, UID {uid}); add --destructive to do it")
    if typer.prompt(f"This {effect}. Type the UID of {identity}, {uid}, to go on", err=True) != uid:
        raise UserError("that is not its UID; nothing was done")


@contextmanager
def _opened(port: str | None, config: options.ConfigFile) -> Iterator[tuple[Settings, benchlab.Identity]]:
    """The settings of the one device that is meant, for this process alone."""
    section = options.settings(config).sources.benchlab
    found = [port] if port else benchlab.addresses(section)
    if len(found) > 1:
        raise UserError(f"there are several devices; choose one with --port: {', '.join(found)}")
    if found == [""]:
        raise Failure("no BENCHLAB on USB (0483:5740); name its port with --port")
    try:
        line = Port(found[0], section.timeout_s)
        try:
            identity = benchlab.shake_hands(line)
            yield Settings(line, identity.layout), identity
        finally:
            line.close()
    except SourceError as error:
        raise Failure(f"{error}; {error.fix}" if error.fix else str(error)) from None
    except ValueError as error:
        raise UserError(str(error)) from None


def _changed(
    layout: wire.Layout, struct: str, before: bytes, changes: list[str], enums: dict[str, str]
) -> bytes:
    """A struct with FIELD=VALUE done: numbers, lists with commas, or names of an enum."""
    known = unpack(layout, struct, before)
    values: Values = {}
    for text in changes:
        field, _, value = text.partition("=")
        if field not in known:
            raise UserError(f"{text}: expected FIELD=VALUE; fields: {', '.join(known)}")
        members = layout.enums.get(enums.get(field, ""), {})
        values[field] = members[value] if value in members else _numbers(text, value, known[field], members)
    return pack(layout, struct, before, values)


def _numbers(text: str, value: str, old: int | list[int], members: dict[str, int]) -> int | list[int]:
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    count = len(old) if isinstance(old, list) else 1
    if len(numbers) != count or (members and numbers[0] not in members.values()):
        expected = ", ".join(members) if members else f"{count} whole number{'s' * (count > 1)}"
        raise UserError(f"{text}: expected {expected}")
    return numbers if isinstance(old, list) else numbers[0]


def _print(layout: wire.Layout, struct: str, raw: bytes, enums: dict[str, str]) -> None:
    shown: dict[str, object] = dict(unpack(layout, struct, raw))
    for field, enum in enums.items():
        names = [member for member, value in layout.enums[enum].items() if value == shown[field]]
        shown[field] = names[0] if names else shown[field]
    print(msgspec.json.encode(shown).decode())
