"""BENCHLAB over MQTT: pytools publishes an emulated device by a real broker."""

import contextlib
import getpass
import json
import socket
import subprocess
import time

import pytest

from benchlab_otel import sources
from benchlab_otel.config import BenchlabMqtt, Sources
from benchlab_otel.simulate.device import Emulator
from benchlab_otel.simulate.truth import Load, Truth
from benchlab_otel.sources import benchlab_mqtt
from benchlab_otel.sources.reading import SourceError
from benchlab_otel.timebase import anchor
from conftest import free_ports, need, wait_for
from pytools import pytools
from receiving import Receiver, read_one

TRUTH = Truth(Load(base={"EPS1": 50.0, "PCIE1": 44.0}))


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """HOST:PORT of a mosquitto that wants user `lab` with password `secret`, and the password's file."""
    folder = tmp_path_factory.mktemp("mosquitto")
    program = need("mosquitto")
    subprocess.run([need("mosquitto_passwd"), "-c", "-b", folder / "users", "lab", "secret"], check=True)
    (port,) = free_ports(1)
    (folder / "conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {folder}/users\n"
        f"user {getpass.getuser()}\nlog_dest none\n"
    )
    (folder / "password").write_text("secret\n")
    with subprocess.Popen([program, "-c", folder / "conf"]) as process:

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return True
            return False

        wait_for(listens)
        yield f"127.0.0.1:{port}", str(folder / "password")
        process.kill()


def settings(broker, **changes) -> BenchlabMqtt:
    address, password = broker
    account = {"username": "lab", "password_file": password, "rate_hz": 50.0, "timeout_s": 20.0}
    return BenchlabMqtt(broker=address, **{**account, **changes})


@contextlib.contextmanager
def exporting(section: BenchlabMqtt):
    receiver = Receiver()
    running = sources.start(
        ["benchlab_mqtt"], Sources(benchlab_mqtt=section), receiver, "s", flush_s=0.02, metrics_s=0.02
    )
    try:
        yield running, receiver
    finally:
        running.stop()


@contextlib.contextmanager
def publisher(broker):
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    client = Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set("lab", "secret")
    host, _, port = broker[0].partition(":")
    client.connect(host, int(port))
    client.loop_start()

    def publish(topic, *bodies, retain=False) -> None:
        sent = [client.publish(topic, json.dumps(body), qos=1, retain=retain) for body in bodies]
        sent[-1].wait_for_publish(20)

    try:
        yield publish
    finally:
        client.disconnect()
        client.loop_stop()


def test_what_pytools_publishes_is_exported_and_labelled(broker, golden):
    host, _, port = broker[0].partition(":")
    account = {"MQTT_BROKER": host, "MQTT_PORT": port, "MQTT_USERNAME": "lab", "MQTT_PASSWORD": "secret"}
    with Emulator(TRUTH, "original", 3, seed=1) as emulator, pytools("mqtt", emulator.path, **account):
        with exporting(settings(broker)) as (_, receiver):
            wait_for(lambda: len(receiver.samples()) >= 3 and receiver.values("hw.host.power"))
        uid = emulator.uid.hex().upper()
    for span, values in receiver.samples():
        assert (values["hw.id"], values["benchlab.transport"]) == (f"benchlab-{uid}-mqtt", "mqtt")
        assert values["hw.power.system"] == pytest.approx(94.0)
        assert values["hw.temperature.chip"] == pytest.approx(41.0)
        assert span.start_time_unix_nano < span.end_time_unix_nano
    golden("benchlab-mqtt.json", receiver.outline())
    resource = receiver.spans[-1][0]
    assert (resource["benchlab.transport"], resource["benchlab.simulated"]) == ("mqtt", True)


INFO = {"ProductId": 0x10, "FwVersion": 6}


def test_old_messages_are_no_readings_and_silence_is_told(broker):
    with publisher(broker) as publish:
        publish("quiet/AB01/info", INFO, retain=True)
        publish("quiet/AB01/telemetry", {"SYS_Power": 20.0, "Vdd": 3.3}, retain=True)
        with exporting(settings(broker, prefix="quiet", timeout_s=1.0)) as (running, receiver):
            wait_for(lambda: running.health()[0].failures["late"])
            assert "nothing published" in running.health()[0].message
            assert not receiver.samples()


def test_what_is_published_faster_than_it_is_read_does_not_pile_up(broker):
    with publisher(broker) as publish:
        publish("fast/AB01/info", INFO, retain=True)
        with contextlib.closing(benchlab_mqtt.open_reader(settings(broker, prefix="fast"), "")) as reader:
            for number in range(1, 201):
                publish("fast/AB01/telemetry", {"SYS_Power": float(number), "Vdd": 3.3})
            watts: list[float] = []
            while watts[-1:] != [200.0]:
                watts.append(read_one(reader)["hw.power.system"])
    assert len(watts) < 100


def test_a_reading_that_was_held_up_on_its_way_was_made_within_its_interval(broker):
    start_ns = anchor().now_ns()

    def coded() -> dict:
        """A reading that says when it was made: now."""
        return {"SYS_Power": 1.0 + (anchor().now_ns() - start_ns) / 1e9, "Vdd": 3.3}

    with publisher(broker) as publish:
        publish("late/AB01/info", INFO, retain=True)
        with contextlib.closing(benchlab_mqtt.open_reader(settings(broker, prefix="late"), "")) as reader:
            publish("late/AB01/telemetry", coded())
            replies = [reader.read()]
            first, second = coded(), coded()
            time.sleep(0.1)
            publish("late/AB01/telemetry", first, second)
            while second != json.loads(replies[-1][2]):
                replies.append(reader.read())
            (batch,) = reader.decode(replies)
    watts = batch.values[:, [field.key for field in batch.fields].index("hw.power.system")]
    made = start_ns + (watts - 1.0) * 1e9
    assert (batch.start_ns <= made + 1000).all()
    assert (made - 1000 <= batch.end_ns).all()


def test_another_device_that_begins_to_publish_is_not_taken_for_the_one_that_is_read(broker):
    with publisher(broker) as publish:
        publish("later/AB01/info", INFO, retain=True)
        with contextlib.closing(benchlab_mqtt.open_reader(settings(broker, prefix="later"), "")) as reader:
            publish("later/AB02/info", INFO, retain=True)
            publish("later/AB02/telemetry", {"SYS_Power": 2.0, "Vdd": 3.3})
            publish("later/AB01/telemetry", {"SYS_Power": 1.0, "Vdd": 3.3})
            assert read_one(reader)["hw.power.system"] == 1.0
            publish("later/AB02/telemetry", {"SYS_Power": 2.0, "Vdd": 3.3})
            publish("later/AB01/telemetry", {"SYS_Power": 1.5, "Vdd": 3.3})
            assert read_one(reader)["hw.power.system"] == 1.5


def test_several_devices_are_to_be_named(broker):
    with publisher(broker) as publish:
        for uid in ("AB01", "AB02"):
            publish(f"two/{uid}/info", INFO, retain=True)
        with pytest.raises(SourceError, match="expected one device, found: AB01, AB02"):
            benchlab_mqtt.open_reader(settings(broker, prefix="two"), "")
        with contextlib.closing(benchlab_mqtt.open_reader(settings(broker, prefix="two"), "AB02")) as reader:
            assert reader.device.hw_id == "benchlab-AB02-mqtt"
        publish("two/AB03/info", {"ProductId": 0x77, "FwVersion": 1}, retain=True)
        with pytest.raises(SourceError, match="no contract"):
            benchlab_mqtt.open_reader(settings(broker, prefix="two"), "AB03")
        publish("two/AB04/info", {"ProductId": "0x11", "FwVersion": 7}, retain=True)
        with pytest.raises(SourceError, match="not a device's information"):
            benchlab_mqtt.open_reader(settings(broker, prefix="two"), "AB04")


def test_what_is_wrong_with_the_broker_is_told(broker):
    with pytest.raises(SourceError, match="Not authorized") as error:
        benchlab_mqtt.open_reader(settings(broker, password_file=""), "")
    assert "username and .password_file" in error.value.fix
    with pytest.raises(SourceError, match="refused"):
        benchlab_mqtt.open_reader(BenchlabMqtt(broker="127.0.0.1:1"), "")
    with pytest.raises(SourceError) as error:  # refused, or there is no IPv6 here
        benchlab_mqtt.open_reader(BenchlabMqtt(broker="[::1]:1"), "")
    assert "not known" not in str(error.value)
    for wrong in ("localhost", "localhost:0", "localhost:99999", ":1883"):
        with pytest.raises(SourceError, match="expected HOST:PORT"):
            benchlab_mqtt.open_reader(BenchlabMqtt(broker=wrong), "")
    with pytest.raises(SourceError, match="label empty or too long"):
        benchlab_mqtt.open_reader(BenchlabMqtt(broker=f"{'a' * 70}.invalid:1"), "")
    with pytest.raises(SourceError, match="expected HOST:PORT, no user") as error:
        benchlab_mqtt.open_reader(BenchlabMqtt(broker="lab:hunter2@localhost:1883"), "")
    assert "hunter2" not in str(error.value)
    with pytest.raises(SourceError, match="no broker is set"):
        benchlab_mqtt.open_reader(BenchlabMqtt(), "")
