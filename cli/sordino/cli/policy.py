"""`sordino policy`: a device owner's rules; made, signed, shown, and tried on a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sordino.core.errors import PolicyError, PolicyRefusedError

if TYPE_CHECKING:
    from sordino.privacy.plan import ChargedPlan
    from sordino.privacy.policy import Policy

app = typer.Typer(help="Show, sign and try the policies of devices.", no_args_is_help=True)


@app.command()
def show(
    policy: Path | None = typer.Argument(None, help="A policy; none: the built-in one."),
    key: str = typer.Option("", help="The owner's public key: check the signature too."),
) -> None:
    """Show a policy in full, what it leaves out included."""
    from sordino.privacy.policy import BUILT_IN, load_policy, policy_toml, read_unsigned

    shown, standing = BUILT_IN, "the built-in policy, of a device without a file"
    if policy is not None:
        shown = load_policy(policy, key) if key else read_unsigned(policy)
        standing = f"signed by {key}" if key else "the signature was not checked: give --key"
    typer.echo(f"# {shown.sha256}\n# {standing}")
    typer.echo(policy_toml(shown), nl=False)


@app.command()
def sign(
    policy: Path = typer.Argument(help="The TOML file; its signature goes beside it."),
    key: Path = typer.Option(
        ..., "--key", help="The owner's private key. It stays with the owner."
    ),
    new_key: bool = typer.Option(False, "--new-key", help="Make the key first."),
) -> None:
    """Sign a policy with its owner's key, and print the public key that devices are given."""
    from sordino.privacy.policy import make_owner_key, sign_policy

    if new_key:
        make_owner_key(key)
    typer.echo(f"public key: {sign_policy(policy, key)}")


@app.command()
def check(
    plan: Path = typer.Argument(help="A plan.json, or a metric.json."),
    policies: Path = typer.Option(..., "--policies", help="A folder of policies, *.toml."),
    base_sha256: str | None = typer.Option(None, help="The base model's hash."),
    rank: int | None = typer.Option(None, help="The adapter's rank."),
    target: list[str] = typer.Option([], "--target", help="A module of the adapter; repeatable."),
) -> None:
    """Say which devices would refuse a plan, and why; exit with 1 if any would."""
    from sordino.privacy.policy import read_unsigned

    wanted = _read(plan)
    files = sorted(policies.glob("*.toml"))
    if not files:
        raise PolicyError(f"no policy (*.toml) in {policies}")
    refusals = 0
    for file in files:
        try:
            _try(read_unsigned(file), wanted, base_sha256, rank, target)
        except PolicyRefusedError as error:
            refusals += 1
            typer.echo(f"{file.name}: refuses, {error}")
        else:
            typer.echo(f"{file.name}: accepts")
    typer.echo(f"{refusals} of {len(files)} would refuse; a device also counts what it has spent")
    if refusals:
        raise typer.Exit(1)


def _try(
    policy: Policy,
    plan: ChargedPlan,
    base_sha256: str | None,
    rank: int | None,
    targets: list[str],
) -> None:
    from sordino.privacy.plan import first_refused_round, request_of
    from sordino.privacy.policy import check_request

    request = request_of(plan, base_sha256=base_sha256, rank=rank, targets=targets)
    # A device that works on certain conditions only isn't a device that refuses the plan.
    ready = dict.fromkeys(("charging", "idle", "unmetered"), True)
    check_request(policy, request, lambda: ready)
    number = first_refused_round(policy, plan)
    if number is not None:
        raise PolicyRefusedError(
            "policy-budget", f"with nothing spent yet, round {number} of {plan.rounds}"
        )


def _read(path: Path) -> ChargedPlan:
    from sordino.privacy.plan import decode_charged_plan

    try:
        return decode_charged_plan(path.read_bytes())
    except OSError as error:
        raise PolicyError(f"can't read {path}: {error.strerror}") from error
