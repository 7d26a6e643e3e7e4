"""`sordino audit`: what leaks from a run, beside what it promises; and bundles verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from click import Context
from rich.console import Console
from typer.core import TyperGroup

from sordino.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sordino.privacy.audit import Findings


class _RunByDefault(TyperGroup):
    """`sordino audit RUN` is `sordino audit run RUN`."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Put the command's name before arguments that don't begin with one."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    help="Measure what leaks from a run (`sordino audit RUN`), and verify what others measured.",
    no_args_is_help=True,
)


@app.command("run")
def run(
    folder: Path | None = typer.Argument(None, help="A run's folder."),
    tier: str = typer.Option("quick", "--tier", help="How much: quick, or full."),
    key: Path | None = typer.Option(
        None, "--key", help="The auditor's signing key, made if absent (default: this user's)."
    ),
    self_test: bool = typer.Option(
        False, "--self-test", help="Audit known faults on this installation: each must be caught."
    ),
    model: str | None = typer.Option(
        None, "--model", help="Without a run: the base's name, a .gguf file, or a folder."
    ),
    adapter: Path | None = typer.Option(
        None, "--adapter", help="Without a run: the adapter's folder."
    ),
    config: Path | None = typer.Option(
        None, "--config", help="Without a run: a TOML file whose [data] names the training records."
    ),
) -> None:
    """Audit a finished run: audit.json, a section of its report, and a signed bundle.

    Exits with 3 if a lower bound contradicts the claim, with 1 if anything else is wrong.
    """
    console = Console()
    given = (model, adapter, config)
    if any(given):
        if not all(given) or folder is not None or self_test:
            raise ConfigError("--model, --adapter and --config go together, and without a run")
        _audit_adapter(console, str(model), adapter or Path(), config or Path(), tier)
        return
    if self_test:
        if folder is not None:
            raise ConfigError("--self-test tries this installation, and no run: give it alone")
        raise typer.Exit(_try_installation(console))
    if folder is None:
        raise ConfigError("name a run's folder, or give --self-test")
    raise typer.Exit(_audit(console, folder, tier, key))


def audit_demo(folder: Path) -> None:
    """Audit the demo's own run: exposure and membership, private against not.

    A red alarm ends with its exit code, as after any audit.
    """
    code = _audit(Console(), folder, "demo", None)
    if code:
        raise typer.Exit(code)


def _audit(console: Console, folder: Path, tier: str, key: Path | None) -> int:
    from sordino.cli.progress import watching

    with watching(console) as progress:
        progress.say("Opening the run ...")
        from sordino.sim.audit.bundles import auditor_key, bundle_of, write_bundle
        from sordino.sim.audit.reporting import write_into_report
        from sordino.sim.audit.run import audit_run

        try:
            outcome = audit_run(folder, tier, progress=progress)
        except KeyboardInterrupt:
            progress.say("Stopped. What is finished is kept: give the same command to go on.")
            raise
    page = write_into_report(outcome)
    findings = write_bundle(outcome, key or auditor_key())
    own = [entry for entry in outcome.audit.entries if not entry.control]
    _print(console, (f"{e.label}: {_name(e.measure)}: {e.figures['verdict']}" for e in own))
    _show(console, findings)
    _print(console, [f"Report: {page}", f"Bundle: {bundle_of(outcome.target.run.root)}"])
    _print(console, [f"Done in {outcome.seconds:.0f} s."])
    return findings.exit_code


def _audit_adapter(console: Console, model: str, adapter: Path, config: Path, tier: str) -> None:
    """What a user of a model and an adapter can find; audit.json goes below the adapter."""
    import json

    from sordino.cli.progress import watching
    from sordino.core.config import load_experiment

    experiment = load_experiment(config, [f"model.name={json.dumps(model)}"])
    out = adapter / "audit"
    with watching(console) as progress:
        progress.say("Opening the model and the data ...")
        from sordino.sim.audit.deployed import audit_adapter

        audit = audit_adapter(experiment, adapter, out, tier, progress=progress)
    _print(console, (f"{e.measure.kind}: {e.figures['verdict']}" for e in audit.entries))
    _print(
        console, [f"No canaries and no ledger: nothing is claimed. Scores: {out / 'audit.json'}"]
    )


def _try_installation(console: Console) -> int:
    """Every trial on a line; 0 if each fault was caught and the real mechanism left alone."""
    from sordino.sim.audit.selftest import EPSILON, self_test

    _print(console, [f"Known faults under a claim of ε ≤ {EPSILON:g}; less than a minute ..."])
    failed = 0
    for trial in self_test():
        caught = "caught" if trial.broken["alarm"] else "NOT CAUGHT"
        real = "ALARM" if trial.real["alarm"] else "no alarm"
        _print(console, [f"{trial.fault}: {caught} by {trial.adversary}; without it: {real}"])
        failed += not trial.passed
    _print(console, ["All faults were caught." if not failed else f"{failed} trials failed."])
    return int(bool(failed))


@app.command("verify")
def verify(
    bundle: Path = typer.Argument(help="A bundle's folder."),
    key: str | None = typer.Option(
        None, "--key", help="The auditor's public key, learnt elsewhere: 64 hexadecimal digits."
    ),
    root: str | None = typer.Option(
        None, "--root", help="The root of the commitments, kept since before training."
    ),
) -> None:
    """Compute every figure of a bundle again, offline, from raw scores and the ledger.

    Exits with 1 on any mismatch, with 3 if a lower bound contradicts the claim.
    """
    from sordino.privacy.audit import verify_bundle

    findings = verify_bundle(bundle, key, root)
    _show(Console(), findings)
    raise typer.Exit(findings.exit_code)


def _name(measure: object) -> str:
    """A measure's kind, and what of it this is."""
    names = ("kind", "adversary", "scope", "attack", "target")
    return " ".join(str(part) for name in names if (part := getattr(measure, name, "")))


def _show(console: Console, findings: Findings) -> None:
    _print(console, findings.compared)
    _print(console, (f"DEFECT {text}" for text in findings.defects))
    _print(console, (f"ALARM {text}" for text in findings.alarms))
    if findings.exit_code == 0:
        _print(console, ["Nothing is wrong: every figure follows from its scores."])
    elif findings.alarms:
        _print(console, ["RED ALARM: the claim is contradicted. Do not rely on it."])


def _print(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
