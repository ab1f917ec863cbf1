"""What a BENCHLAB is told while it is read: lights that show latency, fans that follow a quantity.

Only the thread that reads the device writes to it, between two readings. What is changed is first
read and put back in the end. When readings stop, fans go to their fail-safe duty, as far as the
device still takes it, until it is read again or the process ends, which puts them back too. What a
device that is gone by then keeps is told, with the commands that set it back; a process that is killed
can't undo anything (`benchlab-otel device restore`).
"""

from __future__ import annotations

import difflib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from benchlab_otel import config, wire
from benchlab_otel.sources.benchlab_settings import Settings, pack, unpack
from benchlab_otel.sources.reading import SourceError

log = logging.getLogger(__name__)

Latency = Callable[[], float | None]
_COLORS = {"green": (0, 255, 0), "yellow": (255, 140, 0), "red": (255, 0, 0)}
_LEAST_STEP = 2  # %: smaller changes of a fan are not worth a write
_ANOTHER = "another device is there now"
_PUT_BACK_S, _AGAIN_S = 3.0, 0.1  # for a device that did not answer when reading ended
_Place = tuple[str, int]  # "fan" or "rgb", and its number
_CHANGED = {  # what control changes: the struct and its fields
    "fan": ("FanConfigStruct", ("FanMode", "FixedDuty")),
    "rgb": ("RGBConfigStruct", ("Mode", "Red", "Green", "Blue")),
}
_Opened = AbstractContextManager[tuple[Settings, bytes]]  # the settings of a device and its UID


def color_of(latency_ms: float, shown: str, rules: config.Control) -> str:
    """Green, yellow or red; a colour is left downwards only below its threshold less the hysteresis."""
    slack = 1.0 - rules.hysteresis
    red = rules.red_ms * (slack if shown == "red" else 1.0)
    yellow = rules.yellow_ms * (slack if shown in ("yellow", "red") else 1.0)
    return "red" if latency_ms >= red else "yellow" if latency_ms >= yellow else "green"


@dataclass(frozen=True, slots=True)
class FanRule:
    """The duty of a fan (counted from 0) by a quantity, which is an attribute of the samples."""

    fan: int
    key: str
    low: float
    low_duty: float
    high: float
    high_duty: float


def parse_rule(text: str) -> FanRule:
    """A rule as `config.FanRule` has it; ValueError where HIGH is not above LOW or a duty above 100."""
    fan, quantity, low, high = text.split(" ")
    (from_, from_duty), (to, to_duty) = (tuple(map(float, end.split(":"))) for end in (low, high))
    if not from_ < to or max(from_duty, to_duty) > 100:
        raise ValueError(f"fan rule {text!r}: expected LOW < HIGH, and duties up to 100")
    return FanRule(int(fan) - 1, f"hw.{quantity}", from_, from_duty, to, to_duty)


def _checked(rules: config.Control) -> list[FanRule]:
    """The fan rules; ValueError where rules contradict each other."""
    found = [parse_rule(text) for text in rules.fans]
    if len({rule.fan for rule in found}) < len(found):
        raise ValueError(
            f"sources.benchlab.control.fans: expected one rule for a fan, not {list(rules.fans)}"
        )
    if rules.light and rules.yellow_ms > rules.red_ms:
        limits = f"yellow_ms up to red_ms, not {rules.yellow_ms:g} and {rules.red_ms:g}"
        raise ValueError(f"sources.benchlab.control: expected {limits}")
    return found


def duty_of(rule: FanRule, value: float | None, rules: config.Control) -> int:
    """Percent, on the line between both ends of the rule; the fail-safe duty where there is no value."""
    if value is None or np.isnan(value):
        return rules.failsafe_duty
    ends = (rule.low, rule.high), (rule.low_duty, rule.high_duty)
    return max(rules.least_duty, round(float(np.interp(value, *ends))))


class Control:
    """The control of one device, through all the times that its port is opened."""

    def __init__(self, rules: config.Control, latency: Latency) -> None:
        self._rules, self._latency = rules, latency
        self._fan_rules = _checked(rules)
        self._before: dict[_Place, bytes] = {}  # what was there
        self._left: dict[_Place, str] = {}  # what is not as before any more, in words
        self._layout: wire.Layout | None = None
        self._owner = b""
        self._color = ""
        self._duties: dict[int, int] = {}
        self._not_there: set[str] = set()  # quantities of rules that the device has not, and we have said so
        self._ended = False

    def opened(self, settings: Settings, uid: bytes) -> None:
        """Reads what will be changed, the first time that the device is seen."""
        if uid != self._owner:
            self._tell_left(settings.port.path, f"{settings.port.path}: {_ANOTHER}")
            self._owner, self._before, self._left = uid, {}, {}
        self._color, self._duties, self._layout = "", {}, settings.layout
        for rule in self._fan_rules:
            fan = settings.fan(self._rules.fan_profile, rule.fan)
            self._before.setdefault(("fan", rule.fan), fan)
        for profile in range(settings.layout.rgb_profiles if self._rules.light else 0):
            self._before.setdefault(("rgb", profile), settings.rgb(profile))

    def act(self, settings: Settings, values: Mapping[str, float]) -> None:
        """Sets fans and lights by the newest reading. A setting that is refused ends control, not reading."""
        if self._ended:
            return
        try:
            self._show(settings, self._latency())
            for rule in self._fan_rules:
                if rule.key not in values:
                    self._tell_not_there(rule, values)
                self._turn(settings, rule.fan, duty_of(rule, values.get(rule.key), self._rules))
        except SourceError as error:
            if error.reason != "refused":
                raise
            log.warning("benchlab: control ended: %s", error)
            self._ended = True

    def closing(self, settings: Settings, failed: bool) -> None:
        """Puts everything back; where reading `failed`, fans go to their fail-safe duty instead."""
        try:
            if failed:
                settings.port.drain()
                self._duties = {}
                for rule in self._fan_rules:
                    self._turn(settings, rule.fan, self._rules.failsafe_duty)
            self._restore(settings, ("rgb",) if failed else ("fan", "rgb"))
        except SourceError as error:
            log.warning("benchlab: %s; fans and lights stay as they were set until it answers", error)

    def finish(self, path: str, open_: Callable[[float], _Opened]) -> None:
        """Puts back what is not as it was, when reading has ended for good.

        `open_` opens the device anew, to answer within so many seconds. An error says what can't be put
        back before long, and the commands that do it later.
        """
        deadline = time.monotonic() + _PUT_BACK_S
        while self._left:
            try:
                with open_(max(_AGAIN_S, deadline - time.monotonic())) as (settings, uid):
                    if uid != self._owner:
                        raise SourceError("unknown", f"{path}: {_ANOTHER}")
                    self._restore(settings, ("fan", "rgb"))
            except SourceError as error:
                if time.monotonic() > deadline:
                    self._tell_left(path, str(error))
                    return
                time.sleep(_AGAIN_S)

    def _restore(self, settings: Settings, kinds: tuple[str, ...]) -> None:
        profile = self._rules.fan_profile
        for kind, number in [place for place in self._left if place[0] in kinds]:
            before = self._before[kind, number]
            if kind == "fan" and settings.fan(profile, number) != before:
                settings.set_fan(profile, number, before)
            elif kind == "rgb" and settings.rgb(number) != before:
                settings.set_rgb(number, before)
            del self._left[kind, number]

    def _tell_left(self, path: str, why: str) -> None:
        if self._left:
            left = ", ".join(words for _, words in sorted(self._left.items()))
            commands = " && ".join(self._undoing(path))
            log.error("benchlab: %s; %s; to put that back: %s", why, left, commands)

    def _undoing(self, path: str) -> Iterator[str]:
        """The commands that put back what is not as it was."""
        assert self._layout  # of the device that was changed
        for kind, number in sorted(self._left):
            struct, fields = _CHANGED[kind]
            values = unpack(self._layout, struct, self._before[kind, number])
            which, profile = (f" {number + 1}", self._rules.fan_profile) if kind == "fan" else ("", number)
            changes = " ".join(f"{field}={values[field]}" for field in fields)
            yield f"benchlab-otel device {kind}{which} {changes} --profile {profile} --port {path}"

    def _tell_not_there(self, rule: FanRule, values: Mapping[str, float]) -> None:
        if rule.key in self._not_there:
            return
        self._not_there.add(rule.key)
        near = difflib.get_close_matches(rule.key, values, n=1)
        hint = f"; did you mean {near[0].removeprefix('hw.')}?" if near else ""
        log.warning(
            "benchlab: fan %d stays at failsafe_duty: the device has no %s%s",
            rule.fan + 1,
            rule.key.removeprefix("hw."),
            hint,
        )

    def _show(self, settings: Settings, latency_s: float | None) -> None:
        """The colour of a latency; without frames the lights are as they were."""
        if not self._rules.light:
            return
        color = "" if latency_s is None else color_of(latency_s * 1e3, self._color, self._rules)
        if color == self._color:
            return
        for profile in range(settings.layout.rgb_profiles if color else 0):
            self._left["rgb", profile] = f"lights {profile} may still be {color}"
            settings.set_rgb(profile, _colored(settings, self._before["rgb", profile], color))
        if not color:
            self._restore(settings, ("rgb",))
        self._color = color

    def _turn(self, settings: Settings, fan: int, duty: int) -> None:
        shown = self._duties.get(fan)
        at_end = duty in (self._rules.least_duty, self._rules.failsafe_duty, 100)
        if shown is not None and (duty == shown or (abs(duty - shown) < _LEAST_STEP and not at_end)):
            return
        fixed = {"FanMode": settings.layout.enums["FAN_MODE"]["fixed"], "FixedDuty": duty}
        raw = pack(settings.layout, "FanConfigStruct", self._before["fan", fan], fixed)
        self._left["fan", fan] = f"fan {fan + 1} may still be at {duty} %"  # also where no answer comes
        settings.set_fan(self._rules.fan_profile, fan, raw)
        self._duties[fan] = duty


def _colored(settings: Settings, before: bytes, color: str) -> bytes:
    red, green, blue = _COLORS[color]
    mode = settings.layout.enums["RGB_MODE"]["single_color"]
    changes = {"Mode": mode, "Red": red, "Green": green, "Blue": blue}
    return pack(settings.layout, "RGBConfigStruct", before, changes)
