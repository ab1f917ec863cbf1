"""What a BENCHLAB is told while it is read: lights that show latency, fans that follow a quantity.

Only the thread that reads the device writes to it, between two readings. What is changed is first
read and put back in the end. When readings stop, fans go to their fail-safe duty, as far as the
device still takes it, until it is read again or the process ends, which puts them back too, or tells what
a device that is gone keeps (see `benchlab_undo`). A process that is killed can't undo anything.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchlab_otel import config
from benchlab_otel.sources.benchlab_settings import Settings, pack
from benchlab_otel.sources.benchlab_undo import Changes, Place, put_back, read, write
from benchlab_otel.sources.reading import SourceError

log = logging.getLogger(__name__)

Latency = Callable[[], float | None]
_COLORS = {"green": (0, 255, 0), "yellow": (255, 140, 0), "red": (255, 0, 0)}
_LEAST_STEP = 2  # %: smaller changes of a fan are not worth a write


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


def checked(rules: config.Control) -> list[FanRule]:
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
    """The control of the device on one port, through all the times that it is opened."""

    def __init__(self, rules: config.Control, latency: Latency) -> None:
        self._rules, self._latency = rules, latency
        self._fan_rules = checked(rules)
        self._changes: Changes | None = None  # of the device that is there
        self._color: str | None = None  # not known
        self._duties: dict[int, int] = {}
        self._not_there: set[str] = set()  # quantities of rules that the device has not, and we have said so
        self._ended = False

    def opened(self, settings: Settings, changes: Changes) -> None:
        """Reads what will be changed, unless it is left as we set it, on whatever port."""
        self._color, self._duties, self._changes = None, {}, changes
        places = [self._place(rule.fan) for rule in self._fan_rules]
        places += _lights(settings) if self._rules.light else []
        for place in places:
            if place not in changes.left:
                changes.before[place] = read(settings, place)

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
            put_back(settings, self._known(), "rgb", *([] if failed else ["fan"]))
        except SourceError as error:
            log.warning("benchlab: %s; fans and lights stay as they were set until it answers", error)

    def _known(self) -> Changes:
        assert self._changes  # since the device was opened
        return self._changes

    def _place(self, fan: int) -> Place:
        return "fan", self._rules.fan_profile, fan

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
        color = "" if latency_s is None else color_of(latency_s * 1e3, self._color or "", self._rules)
        if color == self._color:
            return
        changes = self._known()
        if color:
            for place in _lights(settings):
                changes.left[place] = f"lights {place[1]} may still be {color}"
                write(settings, place, _colored(settings, changes.before[place], color))
        else:
            put_back(settings, changes, "rgb")
        self._color = color

    def _turn(self, settings: Settings, fan: int, duty: int) -> None:
        shown = self._duties.get(fan)
        at_end = duty in (self._rules.least_duty, self._rules.failsafe_duty, 100)
        if shown is not None and (duty == shown or (abs(duty - shown) < _LEAST_STEP and not at_end)):
            return
        changes, place = self._known(), self._place(fan)
        fixed = {"FanMode": settings.layout.enums["FAN_MODE"]["fixed"], "FixedDuty": duty}
        raw = pack(settings.layout, "FanConfigStruct", changes.before[place], fixed)
        changes.left[place] = f"fan {fan + 1} may still be at {duty} %"  # also where no answer comes
        write(settings, place, raw)
        self._duties[fan] = duty


def _lights(settings: Settings) -> list[Place]:
    return [("rgb", profile, 0) for profile in range(settings.layout.rgb_profiles)]


def _colored(settings: Settings, before: bytes, color: str) -> bytes:
    red, green, blue = _COLORS[color]
    mode = settings.layout.enums["RGB_MODE"]["single_color"]
    changes = {"Mode": mode, "Red": red, "Green": green, "Blue": blue}
    return pack(settings.layout, "RGBConfigStruct", before, changes)
