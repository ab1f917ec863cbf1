"""Power meter: what one device reads, rail by rail and pin by pin."""

from __future__ import annotations

from benchlab_dashboards.board import Board, Row, choice
from benchlab_dashboards.colours import DOMAINS, GREEN, ORANGE, RAILS, SKY, VERMILLION, WIRES
from benchlab_dashboards.panels import Query, bars, lines, rows, states
from benchlab_dashboards.promql import scoped, series
from benchlab_otel import contract

WHERE = "{{hw_sensor_location}}"
NO_METER = "no reading from this meter: Health tells why"
NO_PINS = "this meter does not see single pins"
NO_SENSOR = "no such sensor is connected"
METER = choice(
    "device",
    "Power meter",
    f"label_values({scoped(contract.HW_CURRENT)}, hw_id)",
    None,
    "One meter at a time: rails of two would have the same names.",
)
IS_RAIL = ('hw_type="power_rail"', 'hw_sensor_location!~".*_W[0-9]"')
IS_PIN = ('hw_type="power_rail"', 'hw_sensor_location=~"HPWR[0-9]_W[0-9]"')
IS_SWITCH = 'hw_type="switch"'
RAIL_POWER = series(contract.HW_POWER, *IS_RAIL)
NOMINAL = (("ATX3V", 3.3), ("ATX5V.*", 5.0), ("EPS.*|PCIE.*|HPWR.*|ATX12V", 12.0))


def off_nominal(rails: str, volts: float) -> str:
    """How far rails are from their voltage, as a share of it."""
    chosen = f'hw_sensor_location=~"{rails}"'
    return f"{series(contract.HW_VOLTAGE, IS_RAIL[0], chosen)} / {volts} - 1"


TOLERANCE = " or ".join(off_nominal(rails, volts) for rails, volts in NOMINAL)
CONNECTOR = 'label_replace({}, "connector", "$1", "hw_sensor_location", "(HPWR[0-9])_W[0-9]")'
PIN_AMPERES = CONNECTOR.format(series(contract.HW_CURRENT, *IS_PIN))
IMBALANCE = f"max by (connector) ({PIN_AMPERES}) / avg by (connector) ({PIN_AMPERES})"

TOTALS = Row(
    "Parts of the machine",
    [
        lines(
            "Power",
            "The whole host and its parts, as sums of rails.",
            "watt",
            Query(series(contract.HOST_POWER), "system"),
            Query(series(contract.HW_POWER, 'hw_sensor_location=~"cpu|gpu|mb"'), WHERE),
            styles=DOMAINS,
            width=12,
            absent=NO_METER,
        ),
        bars(
            "Share of each rail",
            "Of the sum of all rails, now.",
            "percentunit",
            Query(f"{RAIL_POWER} / on () group_left () sum({RAIL_POWER})", WHERE),
            styles=RAILS,
            width=12,
            most=1,
            absent=NO_METER,
        ),
    ],
)

RAIL = Row(
    "Rails",
    [
        lines(
            "Power of rails",
            "Voltage times current of each rail.",
            "watt",
            Query(RAIL_POWER, WHERE),
            styles=RAILS,
            stacked=True,
            absent=NO_METER,
        ),
        lines(
            "Current of rails",
            "Each rail's current.",
            "amp",
            Query(series(contract.HW_CURRENT, *IS_RAIL), WHERE),
            styles=RAILS,
            absent=NO_METER,
        ),
        lines(
            "Voltage of rails, off nominal",
            "How far each rail is from 3.3, 5 or 12 V. ATX allows 5 % (12 V under"
            " load by ATX 3: 7 % below to 5 % above).",
            "percentunit",
            Query(TOLERANCE, WHERE),
            styles=RAILS,
            least=-0.05,
            most=0.05,
            absent=NO_METER,
        ),
    ],
)

PINS = Row(
    "12VHPWR connectors",
    [
        lines(
            "Current of pins",
            "Each wire of the connector; 9.5 A is the limit of a pin.",
            "amp",
            Query(series(contract.HW_CURRENT, *IS_PIN), WHERE),
            styles=WIRES,
            most=9.5,
            absent=NO_PINS,
        ),
        lines(
            "Imbalance of pins",
            "The most loaded pin over the mean of its connector. 1: all carry the same.",
            "none",
            Query(IMBALANCE, "{{connector}}"),
            styles={"HPWR1": ORANGE, "HPWR2": SKY},
            least=1,
            most=1.5,
            absent=NO_PINS,
        ),
        lines(
            "Temperature of connectors",
            "Sensors at the connectors' inputs and outputs.",
            "celsius",
            Query(series(contract.HW_TEMPERATURE, 'hw_sensor_location=~"HPWR.*"'), WHERE),
            least=20,
            absent=NO_SENSOR,
        ),
    ],
)

AIR = Row(
    "Cooling and air",
    [
        lines(
            "Fans",
            "Speed of the fans that are driven; one that stands still reads 0.",
            "rotrpm",
            Query(series(contract.HW_FAN_SPEED), "fan {{hw_sensor_location}}"),
            absent=NO_SENSOR,
        ),
        lines(
            "Fans, set to",
            "Duty that each fan is driven with.",
            "percentunit",
            Query(series(contract.HW_FAN_SPEED_RATIO), "fan {{hw_sensor_location}}"),
            most=1,
            absent=NO_SENSOR,
        ),
        lines(
            "Temperatures",
            "The meter's chip and the sensors that are plugged in.",
            "celsius",
            Query(series(contract.HW_TEMPERATURE, 'hw_sensor_location!~"HPWR.*"'), WHERE),
            least=20,
            absent=NO_SENSOR,
        ),
        lines(
            "Air",
            "Temperature around the meter.",
            "celsius",
            Query(series(contract.HOST_AMBIENT), "ambient"),
            styles={"ambient": ORANGE},
            least=15,
            absent=NO_SENSOR,
        ),
        lines(
            "Humidity",
            "Relative humidity around the meter.",
            "percentunit",
            Query(series(contract.HW_HUMIDITY), WHERE),
            styles={"ambient": SKY},
            most=1,
            absent=NO_SENSOR,
        ),
        lines(
            "Inputs and supply",
            "Voltage inputs (VIN) and the meter's own supply and reference.",
            "volt",
            Query(series(contract.HW_VOLTAGE, 'hw_type="voltage"'), WHERE),
            absent=NO_SENSOR,
        ),
    ],
)

STATE = Row(
    "The meter itself",
    [
        states(
            "Faults",
            "Faults that the device reports (live), or did since they were cleared (latched).",
            Query(f"{series(contract.HW_FAULT)} > 0", "{{hw_fault}} {{hw_state}}"),
            {1: ("fault", VERMILLION)},
            width=8,
            absent="no fault",
        ),
        states(
            "Calibration",
            "Which calibration the meter uses.",
            Query(series(contract.HW_CALIBRATION), "{{hw_state}}"),
            {0: ("no", ORANGE), 1: ("yes", GREEN)},
            width=8,
            absent="this device tells of no calibration",
        ),
        states(
            "Switches",
            "The positions that the device's switches are in.",
            Query(f"{series(contract.HW_STATUS, IS_SWITCH)} > 0", "{{hw_sensor_location}} {{hw_state}}"),
            {1: ("set", SKY)},
            width=8,
            absent="this device has no switches",
        ),
        rows(
            "Device",
            "What the device says of itself.",
            "none",
            {"there": series(contract.HW_INFO)},
            {
                "hw_name": "name",
                "hw_vendor": "vendor",
                "hw_model": "model",
                "hw_firmware_version": "firmware",
                "hw_serial_number": "serial number",
            },
            height=4,
            absent="this device tells nothing of itself",
        ),
    ],
)

BOARD = Board(
    "benchlab-meter",
    "benchlab-otel / Power meter",
    "Rails, pins, voltages, fans, temperatures and faults of one power meter.",
    [TOTALS, RAIL, PINS, AIR, STATE],
    [METER],
)
