"""`sordino runs`: look at a fleet's runs, start them, and steer them while they run."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sordino.cli.operators import (
    ADDRESS,
    FLEET,
    FORMAT,
    OPERATOR,
    REQUEST_ID,
    YES,
    Format,
    called,
    epsilon_line,
    moment,
    new_request_id,
    print_json,
    print_table,
)
from sordino.core.errors import ConfigError

if TYPE_CHECKING:
    from sordino.protos.v1 import operator_pb2

app = typer.Typer(help="A fleet's runs.", no_args_is_help=True)

RUN = typer.Argument(help="The run's name.")


@app.command(name="list")
def list_(
    fleet: Path | None = FLEET,
    operator: Path | None = OPERATOR,
    address: str | None = ADDRESS,
    format_: Format = FORMAT,
) -> None:
    """List runs, newest first."""
    from sordino.server.operator.tables import run_table

    with called(fleet, operator, address) as client:
        runs = [run_table(run) for run in client.runs()]
    if format_ is Format.json:
        print_json(runs)
        return
    columns = {"run": "left", "state": "left", "rounds": "right", "cohort": "right"}
    print_table(
        "Runs",
        columns | {"trust": "left", "started": "left"},
        (
            (
                run["run_id"],
                _state(run),
                f"{run['rounds_done']}/{run['rounds_planned']}",
                run["cohort"],
                run["plan"]["trust"],
                moment(run["started_at_unix_ms"]),
            )
            for run in runs
        ),
    )


@app.command()
def show(
    run_id: str = RUN,
    rounds: int = typer.Option(20, min=0, help="So many of the newest rounds."),
    fleet: Path | None = FLEET,
    operator: Path | None = OPERATOR,
    address: str | None = ADDRESS,
    format_: Format = FORMAT,
) -> None:
    """Show a run: how it stands, what it promises, and its newest rounds."""
    from sordino.server.operator.tables import round_table, run_table

    with called(fleet, operator, address) as client:
        run = run_table(client.run(run_id))
        newest = [round_table(one) for one in islice(client.rounds(run_id), rounds)]
    if format_ is Format.json:
        print_json({"run": run, "rounds": newest})
        return
    _print_run(run)
    _print_rounds(run, newest)


@app.command()
def start(
    run_id: str = RUN,
    settings: Path = typer.Argument(help="A TOML file: docs/settings.md."),
    cohort: int = typer.Option(..., min=1, help="Devices that a round asks."),
    request_id: str | None = REQUEST_ID,
    fleet: Path | None = FLEET,
    operator: Path | None = OPERATOR,
    address: str | None = ADDRESS,
    format_: Format = FORMAT,
) -> None:
    """Start a run from its settings. The plan that follows from them is shown."""
    from sordino.protos.v1 import operator_pb2

    try:
        toml = settings.read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {settings}: {error.strerror}") from error
    request = operator_pb2.StartRunRequest(
        request_id=new_request_id(request_id), run_id=run_id, settings_toml=toml, cohort=cohort
    )
    _command("StartRun", request, fleet, operator, address, format_)


@app.command()
def pause(
    run_id: str = RUN,
    request_id: str | None = REQUEST_ID,
    fleet: Path | None = FLEET,
    operator: Path | None = OPERATOR,
    address: str | None = ADDRESS,
    format_: Format = FORMAT,
) -> None:
    """Open no further round; the open one goes on to its end."""
    _command("PauseRun", _of_run(run_id, request_id), fleet, operator, address, format_)


@app.command()
def resume(
    run_id: str = RUN,
    request_id: str | None = REQUEST_ID,
    fleet: Path | None = FLEET,
    operator: Path | None = OPERATOR,
    address: str | None = ADDRESS,
    format_: Format = FORMAT,
) -> None:
    """Go on after a pause, or after a failure that was looked into."""
    _command("ResumeRun", _of_run(run_id, request_id), fleet, operator, address, format_)


@app.command()
def stop(
    run_id: str = RUN,
    yes: bool = YES,
    request_id: str | None = REQUEST_ID,
    fleet: Path | None = FLEET,
    operator: Path | None = OPERATOR,
    address: str | None = ADDRESS,
    format_: Format = FORMAT,
) -> None:
    """End a run for good. The open round is given up; what was charged for it stays charged."""
    if not yes:
        typer.confirm(f"End {run_id} for good?", abort=True)
    _command("StopRun", _of_run(run_id, request_id), fleet, operator, address, format_)


@app.command()
def add_rounds(
    run_id: str = RUN,
    rounds: int = typer.Argument(min=1, help="How many more."),
    request_id: str | None = REQUEST_ID,
    fleet: Path | None = FLEET,
    operator: Path | None = OPERATOR,
    address: str | None = ADDRESS,
    format_: Format = FORMAT,
) -> None:
    """Announce more rounds, at the same noise: ε grows, and devices may refuse them."""
    from sordino.protos.v1 import operator_pb2

    request = operator_pb2.AddRoundsRequest(
        request_id=new_request_id(request_id), run_id=run_id, rounds=rounds
    )
    _command("AddRounds", request, fleet, operator, address, format_)


@app.command()
def cohort(
    run_id: str = RUN,
    devices: int = typer.Argument(min=1, help="So many are asked from the next round on."),
    request_id: str | None = REQUEST_ID,
    fleet: Path | None = FLEET,
    operator: Path | None = OPERATOR,
    address: str | None = ADDRESS,
    format_: Format = FORMAT,
) -> None:
    """Change how many devices a round asks. Under central trust that is the plan's to say."""
    from sordino.protos.v1 import operator_pb2

    request = operator_pb2.ChangeCohortRequest(
        request_id=new_request_id(request_id), run_id=run_id, cohort=devices
    )
    _command("ChangeCohort", request, fleet, operator, address, format_)


@app.command()
def roll_back(
    run_id: str = RUN,
    round_number: int = typer.Argument(min=0, help="Whose adapter; 0: the initial one."),
    request_id: str | None = REQUEST_ID,
    fleet: Path | None = FLEET,
    operator: Path | None = OPERATOR,
    address: str | None = ADDRESS,
    format_: Format = FORMAT,
) -> None:
    """Go on from an earlier round's adapter, once the run is paused. No budget comes back."""
    from sordino.protos.v1 import operator_pb2

    request = operator_pb2.RollBackRequest(
        request_id=new_request_id(request_id), run_id=run_id, round=round_number
    )
    _command("RollBack", request, fleet, operator, address, format_)


def _of_run(run_id: str, request_id: str | None) -> operator_pb2.RunCommand:
    from sordino.protos.v1 import operator_pb2

    return operator_pb2.RunCommand(request_id=new_request_id(request_id), run_id=run_id)


def _command(
    method: str,
    request: Any,
    fleet: Path | None,
    operator: Path | None,
    address: str | None,
    format_: Format,
) -> None:
    """Have a command carried out, and print the run as it then is."""
    from sordino.protos.v1 import operator_pb2
    from sordino.server.operator.tables import run_table

    with called(fleet, operator, address) as client:
        run = run_table(client.call(method, request, operator_pb2.Run))
    if format_ is Format.json:
        print_json(run)
    else:
        _print_run(run)


def _print_run(run: dict[str, Any]) -> None:
    typer.echo(f"run:     {run['run_id']}, {_state(run)}")
    done, planned = run["rounds_done"], run["rounds_planned"]
    typer.echo(f"rounds:  {done} done of {planned} that were announced")
    typer.echo(f"cohort:  {run['cohort']}, at least {run['min_updates']} updates")
    typer.echo(f"plan:    {run['plan_sha256']}")
    adapter = run["adapter"]
    typer.echo(f"adapter: {adapter['sha256'] if adapter else 'the initial one'}")
    for one in run["epsilon"]:
        typer.echo(f"promise: {epsilon_line(one)}")
    if not run["epsilon"]:
        typer.echo("promise: none, for a record or for a user: this run is without privacy")


def _print_rounds(run: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
    left = dict.fromkeys(("state", "dropped", "opened", "closed"), "left")
    columns = {"round": "right", "state": "left", "asked": "right", "received": "right"}
    print_table(
        "Rounds" + ("" if run["plan"]["trust"] != "central" else " (the cohort is secret)"),
        columns | {"bytes up": "right"} | left,
        (
            (
                one["round"],
                one["state"],
                one["asked"],
                one["received"],
                one["bytes_up"],
                ", ".join(f"{count} {word}" for word, count in (one["dropped"] or {}).items()),
                moment(one["opened_at_unix_ms"]),
                moment(one["closed_at_unix_ms"]),
            )
            for one in rounds
        ),
    )


def _state(run: dict[str, Any]) -> str:
    return f"{run['state']} ({run['reason']})" if run["reason"] else str(run["state"])
