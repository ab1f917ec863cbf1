"""What was changed on BENCHLABs and is not as it was found: put back, or told with the commands that do it.

All readers of a start share one dict of `Changes` by UID: a device that comes back on another port is put
back there. What is left in the end is the business of the port that it was last opened on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from benchlab_otel import wire
from benchlab_otel.sources.benchlab_settings import Settings, unpack
from benchlab_otel.sources.reading import SourceError

log = logging.getLogger(__name__)

Place = tuple[str, int, int]  # ("fan", profile, fan), ("rgb", profile, 0), CALIBRATION
CALIBRATION: Place = ("calibration", 0, 0)
_PUT_BACK_S, _AGAIN_S = 3.0, 0.1  # for a device that did not answer when reading ended
_Opened = AbstractContextManager[tuple[Settings, bytes]]  # the settings of a device and its UID


@dataclass(slots=True)
class Changes:
    """What was changed on one device: as it was found, and in words what may be there instead."""

    layout: wire.Layout
    path: str  # where it was opened last
    before: dict[Place, bytes] = field(default_factory=dict)
    left: dict[Place, str] = field(default_factory=dict)
    incomparable: bool = False  # it refused a comparison of its calibration


ByUid = dict[bytes, Changes]


def changes_of(changed: ByUid, uid: bytes, settings: Settings) -> Changes:
    """The changes of a device that was opened just now."""
    layout, path = settings.layout, settings.port.path
    changes = changed.setdefault(uid, Changes(layout, path))
    changes.layout, changes.path = layout, path
    return changes


def read(settings: Settings, place: Place) -> bytes:
    """The bytes of a setting."""
    kind, profile, number = place
    if kind == "calibration":
        return settings.calibration()
    return settings.fan(profile, number) if kind == "fan" else settings.rgb(profile)


def write(settings: Settings, place: Place, raw: bytes) -> None:
    """Writes a setting; SourceError "refused" where it does not read back."""
    kind, profile, number = place
    if kind == "calibration":
        settings.set_calibration(raw)
    elif kind == "fan":
        settings.set_fan(profile, number, raw)
    else:
        settings.set_rgb(profile, raw)


def put_back(settings: Settings, changes: Changes, *kinds: str) -> None:
    """Puts back what is left of some kinds; SourceError where that fails, and the rest is still left."""
    for place in [place for place in changes.left if place[0] in kinds]:
        if read(settings, place) != changes.before[place]:
            write(settings, place, changes.before[place])
        del changes.left[place]


def is_factorys(settings: Settings, changes: Changes) -> bool | None:
    """Whether the calibration is the factory's, which is in force for a moment; None where that is refused.

    After a SourceError it may still be in force: it is in `changes` then.
    """
    if changes.incomparable:
        return None
    try:
        settings.check_takes_calibration()
        table = changes.before[CALIBRATION] = settings.calibration()
        changes.left[CALIBRATION] = "the factory's calibration may be in force"
        factory = settings.load_calibration("factory")
    except SourceError as error:
        if error.reason != "refused":
            raise
        log.warning("benchlab: %s; the calibration is not compared with the factory's", error)
        changes.incomparable = True
        put_back(settings, changes, "calibration")
        return None
    put_back(settings, changes, "calibration")
    return factory[2:] == table[2:]  # a stored table's checksum may be new


def finish(path: str, open_: Callable[[float], _Opened], changed: ByUid) -> None:
    """Puts back what is left of devices that were last opened on a port, when reading has ended for good.

    `open_` opens the port anew, to answer within so many seconds. An error says what can't be put back
    before long, and the commands that do it later.
    """
    deadline = time.monotonic() + _PUT_BACK_S
    while left := {uid: c for uid, c in changed.copy().items() if c.left and c.path == path}:
        try:
            with open_(max(_AGAIN_S, deadline - time.monotonic())) as (settings, uid):
                if uid not in left:
                    raise SourceError("unknown", f"{path}: another device is there now")
                put_back(settings, left[uid], "calibration", "fan", "rgb")
        except SourceError as error:
            if time.monotonic() > deadline:
                for changes in left.values():
                    _tell_left(changes, str(error))
                return
            time.sleep(_AGAIN_S)


def _tell_left(changes: Changes, why: str) -> None:
    left = ", ".join(words for _, words in sorted(changes.left.items()))
    log.error("benchlab: %s; %s; to put that back: %s", why, left, " && ".join(_undoing(changes)))


def _undoing(changes: Changes) -> Iterator[str]:
    """The commands that put back what is left."""
    for place in sorted(changes.left):
        what = _in_words(changes.layout, place, changes.before[place])
        yield f"benchlab-otel device {what} --port {changes.path}"


def _in_words(layout: wire.Layout, place: Place, raw: bytes) -> str:
    """The arguments of `benchlab-otel device` that set what we change of a setting."""
    kind, profile, number = place
    if kind == "calibration":
        return f"calibration --write {raw.hex()}"
    if kind == "fan":
        fan = unpack(layout, "FanConfigStruct", raw)
        return f"fan {number + 1} FanMode={fan['FanMode']} FixedDuty={fan['FixedDuty']} --profile {profile}"
    rgb = unpack(layout, "RGBConfigStruct", raw)
    fields = " ".join(f"{key}={rgb[key]}" for key in ("Mode", "Red", "Green", "Blue"))
    return f"rgb {fields} --profile {profile}"
