"""What a device says of itself, from the files of a kernel that the test writes."""

import json
import time

import pytest
from support.contracts import make_order

from sordino.cli.device import look
from sordino.client.agent.greeting import greeting
from sordino.client.agent.journal import Journal, peek
from sordino.client.device import (
    CALIBRATION,
    Calibration,
    EnergyMeter,
    Gauge,
    celsius,
    find_gauge,
    kept_calibration,
    load_calibration,
    power_source,
    read_conditions,
    save_calibration,
)
from sordino.client.device.synthetic import calibrate
from sordino.client.model.store import cache_root, open_base, resolve_model
from sordino.core import contract
from sordino.core.config import ModelConfig, PerformanceConfig
from sordino.protos.v1 import fleet_pb2

BASE = "ab" * 32
FIGURES = Calibration(
    base_sha256=BASE,
    tokens_per_second=12.5,
    peak_memory_bytes=10**9,
    energy_source="ina",
    joules_per_token=0.25,
)


def write(path, **files):
    path.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (path / name).write_text(f"{value}\n")


@pytest.fixture
def supplies(tmp_path):
    return tmp_path / "sys/class/power_supply"


# --- power and conditions ----------------------------------------------------------------------


def test_a_board_that_says_nothing(tmp_path):
    assert read_conditions(tmp_path) == {}
    assert power_source(tmp_path) == "unknown"
    assert celsius(tmp_path) is None
    assert find_gauge(tmp_path / "sys").source == "unavailable"


@pytest.mark.parametrize(
    ("status", "online", "power"),
    [
        ("Discharging", None, "battery"),
        ("Charging", None, "charging"),
        ("Full", None, "charging"),
        ("Discharging", 1, "charging"),  # more is drawn than comes
        ("Discharging", 0, "battery"),
        ("Unknown", None, "unknown"),
    ],
)
def test_a_battery(tmp_path, supplies, status, online, power):
    write(supplies / "BAT0", type="Battery", status=status)
    if online is not None:
        write(supplies / "AC", type="Mains", online=online)
    assert power_source(tmp_path) == power
    charging = read_conditions(tmp_path).get("charging")
    assert charging is (None if power == "unknown" else power == "charging")


def test_a_mouse_is_not_the_device(tmp_path, supplies):
    write(supplies / "hid", type="Battery", status="Discharging", scope="Device")
    assert power_source(tmp_path) == "unknown"
    assert read_conditions(tmp_path) == {}
    write(supplies / "AC", type="Mains", online=1)
    assert power_source(tmp_path) == "mains"
    assert read_conditions(tmp_path) == {"charging": True}


def test_idle_is_when_nothing_waits_for_a_processor(tmp_path):
    path = tmp_path / "proc/pressure"
    for waiting, idle in (("0.00", True), ("9.99", True), ("10.00", False), ("95.10", False)):
        write(
            path,
            cpu=f"some avg10=50.00 avg60={waiting} avg300=0.00 total=1\n"
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=0",
        )
        assert read_conditions(tmp_path) == {"idle": idle}
    write(path, cpu="nonsense")
    assert read_conditions(tmp_path) == {}


def test_the_hottest_sensor(tmp_path):
    write(tmp_path / "sys/class/thermal/thermal_zone0", temp=41250)
    write(tmp_path / "sys/class/hwmon/hwmon3", temp1_input=52000, temp2_input="none")
    assert celsius(tmp_path) == 52.0


# --- energy ------------------------------------------------------------------------------------


def test_a_current_sensor(tmp_path):
    hwmon = tmp_path / "sys/class/hwmon"
    write(hwmon / "hwmon0", name="cpu_thermal")
    write(hwmon / "hwmon1", name="ina219", power1_input=2_500_000)
    write(hwmon / "hwmon2", name="ina3221", in1_input=5000, curr1_input=300)
    gauge = find_gauge(tmp_path / "sys")
    assert gauge.source == "ina"
    assert gauge.watts() == pytest.approx(2.5 + 1.5)


def test_a_battery_that_discharges(tmp_path, supplies):
    write(supplies / "BAT0", type="Battery", status="Discharging", power_now=4_000_000)
    assert find_gauge(tmp_path / "sys").watts() == 4.0
    (supplies / "BAT0/power_now").unlink()
    write(supplies / "BAT0", voltage_now=4_000_000, current_now=-500_000)
    assert find_gauge(tmp_path / "sys").watts() == 2.0
    write(supplies / "BAT0", status="Charging")
    assert find_gauge(tmp_path / "sys").source == "unavailable"


def test_a_counter_is_read_at_both_ends(tmp_path):
    package = tmp_path / "sys/class/powercap/intel-rapl:0"
    write(package, energy_uj=5_000_000)
    gauge = find_gauge(tmp_path / "sys")
    assert gauge.source == "rapl"
    now = iter([0.0, 4.0])
    with EnergyMeter(gauge, now_s=lambda: next(now)) as meter:
        write(package, energy_uj=11_000_000)
    assert (meter.joules, meter.watts) == (6.0, 1.5)
    with EnergyMeter(gauge) as meter:
        write(package, energy_uj=1)  # it wrapped around: no figure
    assert meter.joules is None


def test_power_is_summed_over_time():
    with EnergyMeter(Gauge("ina", watts=lambda: 3.0)) as meter:
        time.sleep(0.25)
    assert meter.watts == pytest.approx(3.0)
    assert meter.seconds >= 0.25
    readings = iter([3.0])
    with EnergyMeter(Gauge("battery", watts=lambda: next(readings, None))) as meter:
        time.sleep(0.25)
    assert meter.joules is None  # a charger was plugged in: the rest isn't known
    with EnergyMeter(Gauge("unavailable")) as meter:
        pass
    assert meter.joules is None


# --- the synthetic batch -----------------------------------------------------------------------


def test_the_synthetic_batch_goes_through_the_products_step(tmp_path):
    base = open_base(resolve_model(ModelConfig(), cache_root()))
    write(tmp_path / "sys/class/hwmon/hwmon0", name="ina219", power1_input=2_000_000)
    figures = calibrate(base, PerformanceConfig(memory_mb=100), root=tmp_path, rest_s=0.3)
    assert figures.base_sha256 == base.files.sha256
    assert figures.tokens_per_second > 1
    assert figures.peak_memory_bytes > 10**8
    assert figures.idle_watts == pytest.approx(2.0)
    assert figures.joules_per_token == pytest.approx(2.0 / figures.tokens_per_second)
    nothing = calibrate(base, PerformanceConfig(), root=tmp_path / "none", rest_s=60)
    assert (nothing.energy_source, nothing.joules_per_token) == ("unavailable", None)
    assert (nothing.idle_watts, nothing.celsius) == (None, None)


def test_figures_are_kept_for_their_base(tmp_path):
    assert kept_calibration(tmp_path) is None
    save_calibration(tmp_path, FIGURES)
    assert load_calibration(tmp_path, BASE) == FIGURES
    assert load_calibration(tmp_path, "cd" * 32) is None
    for spoilt in ('{"base_sha256": "x"}', "[]", "{", json.dumps({"base_sha256": BASE})):
        (tmp_path / CALIBRATION).write_text(spoilt)
        assert kept_calibration(tmp_path) is None


# --- what is said of it ------------------------------------------------------------------------


def test_a_greeting_says_what_the_device_can(tmp_path):
    said = greeting(tmp_path / "none.db", memory_mb=300, storage_mb=7, calibration=None)
    assert contract.from_bytes(contract.to_bytes(said), fleet_pb2.HelloRequest) == said
    assert said.revision == contract.REVISION
    assert said.capabilities.memory_bytes == 300_000_000
    assert said.capabilities.storage_bytes == 7_000_000
    assert {"Q4_1", "Q8_0"} <= set(said.capabilities.model_formats)
    assert "llama" in said.capabilities.model_families
    assert not said.HasField("calibration")
    assert not said.HasField("ledger_head")
    open_ended = greeting(tmp_path / "none.db", memory_mb=0, storage_mb=7, calibration=FIGURES)
    assert open_ended.capabilities.memory_bytes > 10**7  # what is available
    assert contract.to_bytes(open_ended)
    sent = open_ended.calibration
    assert (sent.tokens_per_second, sent.joules_per_token) == (12.5, 0.25)
    assert sent.energy_source == fleet_pb2.ENERGY_SOURCE_INA
    assert not sent.HasField("idle_watts")


def test_looking_at_a_device_changes_nothing(tmp_path):
    view = look(tmp_path)
    assert (view.device_id, view.task, view.ledger_entries) == ("", "", 0)
    Journal(tmp_path).note(contract.encode_task(make_order()))
    save_calibration(tmp_path, FIGURES)
    before = sorted(tmp_path.rglob("*"))
    view = look(tmp_path)
    assert view.task == "round 1 of run run-1"
    assert view.calibration == FIGURES
    assert sorted(tmp_path.rglob("*")) == before
    assert peek(tmp_path / "none") is None
