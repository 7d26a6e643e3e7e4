"""`sordino doctor`: what is here, what is missing, and how to get it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from sordino.cli.machine import Machine, read_machine

# What the demo needs at least: `pocket`, torch and a worker or two.
NEEDED_MB = 1500
# Optional packages; all others that the `sim` extra names are needed for the demo.
OPTIONAL = ("bitsandbytes",)


class Format(StrEnum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: Of the thing.
        found: What is there; empty if nothing is.
        ok: It is as it should be.
        needed: The demo can't run without it.
        todo: What to do about it; empty if nothing.
    """

    name: str
    found: str
    ok: bool
    needed: bool
    todo: str = ""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that was found."""

    ready: bool
    sordino: str
    python: str
    machine: Machine
    cache: str
    packages: tuple[Finding, ...]
    models: tuple[Finding, ...]
    data: tuple[Finding, ...]
    system: tuple[Finding, ...]


def doctor(
    output: Format = typer.Option(Format.TEXT, "--format", help="How to print what was found."),
) -> None:
    """Look at this machine: what is here, what is missing, and how to get it.

    Exits with 0 if the demo can run, else with 1.
    """
    diagnosis = diagnose()
    if output is Format.JSON:
        typer.echo(json.dumps(asdict(diagnosis), indent=2))
    else:
        _show(diagnosis, Console())
    raise typer.Exit(0 if diagnosis.ready else 1)


def diagnose() -> Diagnosis:
    """Look at everything, without a network; at most an index is added to the model cache."""
    machine, packages = read_machine(), _packages()
    # The rest imports what a missing package would break.
    able = all(finding.ok for finding in packages if finding.needed)
    cache, models = _models() if able else ("", ())
    data, system = (_plays(),), (_memory(machine), _energy(machine), *_state())
    every = (*packages, *models, *data, *system)
    return Diagnosis(
        ready=able and all(finding.ok for finding in every if finding.needed),
        sordino=_version("sordino") or "not installed",
        python=platform.python_version(),
        machine=machine,
        cache=cache,
        packages=packages,
        models=models,
        data=data,
        system=system,
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _packages() -> tuple[Finding, ...]:
    """The packages that Sordino's own metadata asks for, against what is installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("sordino") or []
    except metadata.PackageNotFoundError:
        return (_absent("sordino", 'pip install "sordino[sim]"'),)
    wanted: dict[str, Requirement] = {}
    for line in lines:
        requirement = Requirement(line)
        extras = ("sim", "nf4") if requirement.marker else ("",)
        if any(not requirement.marker or requirement.marker.evaluate({"extra": e}) for e in extras):
            wanted.setdefault(requirement.name, requirement)
    return tuple(_package(wanted[name]) for name in sorted(wanted) if name != "sordino")


def _absent(name: str, todo: str) -> Finding:
    return Finding(name=name, found="", ok=False, needed=True, todo=todo)


def _package(requirement: Any) -> Finding:
    version = _version(requirement.name)
    ok = bool(version) and requirement.specifier.contains(version, prereleases=True)
    needed = requirement.name not in OPTIONAL
    extra = "sim" if needed else "nf4"
    todo = "" if ok else f'pip install "sordino[{extra}]" ({requirement.specifier} is needed)'
    return Finding(name=requirement.name, found=version, ok=ok, needed=needed, todo=todo)


def _models() -> tuple[str, tuple[Finding, ...]]:
    from sordino.client.model.registry import KNOWN, POCKET
    from sordino.client.model.store import cache_root

    cache = cache_root()
    findings = [_model(POCKET, cache, needed=True)]
    findings += [_model(name, cache, needed=False) for name in KNOWN]
    return str(cache), tuple(findings)


def _model(name: str, cache: Path, *, needed: bool) -> Finding:
    from sordino.client.model.store import resolve_model
    from sordino.core.config import ModelConfig
    from sordino.core.errors import ModelError

    try:
        files = resolve_model(ModelConfig(name=name), cache)
    except ModelError as error:
        return Finding(name=name, found="", ok=False, needed=needed, todo=str(error))
    size = files.weights.stat().st_size / 1e6
    found = f"{files.quantization}, {size:.1f} MB, sha256 {files.sha256[:12]}"
    return Finding(name=name, found=found, ok=True, needed=needed)


def _plays() -> Finding:
    from sordino.client.data.shakespeare import play_files
    from sordino.core.errors import DataError

    try:
        plays = play_files()
    except DataError as error:
        return Finding(name="shakespeare", found="", ok=False, needed=True, todo=str(error))
    return Finding(name="shakespeare", found=f"{len(plays)} plays", ok=True, needed=True)


def _memory(machine: Machine) -> Finding:
    enough = machine.available_mb >= NEEDED_MB or not machine.memory_mb
    return Finding(
        name="memory",
        found=f"{machine.available_mb} MB available of {machine.memory_mb}",
        ok=enough,
        needed=True,
        todo="" if enough else f"close other programs: the demo needs about {NEEDED_MB} MB",
    )


def _energy(machine: Machine) -> Finding:
    ok = machine.energy != "unavailable"
    todo = "" if ok else "reports say so; RAPL needs a readable /sys/class/powercap"
    return Finding(name="energy", found=machine.energy, ok=ok, needed=False, todo=todo)


def _state() -> tuple[Finding, ...]:
    """What a device's policy may ask for, and its temperature."""
    from sordino.client.device import celsius, power_source, read_conditions

    known = [name if holds else f"not {name}" for name, holds in read_conditions().items()]
    found = f"power from {power_source()}; {', '.join(known) or 'no condition is known'}"
    degrees = celsius()
    warm = "" if degrees is None else f"{degrees:.1f} °C"
    return (
        Finding(name="conditions", found=found, ok=True, needed=False),
        Finding(name="temperature", found=warm, ok=bool(warm), needed=False),
    )


def _show(diagnosis: Diagnosis, console: Console) -> None:
    machine = diagnosis.machine
    console.print(f"Sordino {diagnosis.sordino}, Python {diagnosis.python}, {machine.system}")
    features = ", ".join(machine.features) or "no vector units known"
    console.print(f"{machine.processor}, {machine.cores} cores, {features}")
    if diagnosis.cache:
        console.print(f"Model cache: {diagnosis.cache}", soft_wrap=True)
    table = Table("", "what", "found", "what to do", show_edge=False)
    for findings in (diagnosis.packages, diagnosis.models, diagnosis.data, diagnosis.system):
        _add(table, findings)
    console.print(table)
    verdict = "The demo can run." if diagnosis.ready else "The demo can't run: see above."
    console.print(verdict)


def _add(table: Table, findings: Iterable[Finding]) -> None:
    for finding in findings:
        bad = "[red]missing[/]" if finding.needed else "[yellow]optional[/]"
        mark = "[green]ok[/]" if finding.ok else bad
        table.add_row(mark, finding.name, finding.found or "-", _escaped(finding.todo))
    table.add_section()


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
