"""`sordino simulate`: a federation on this machine, beside its two baselines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from sordino.core.config import ExperimentConfig


def simulate(
    scenario: str = typer.Argument(
        "demo", help="The name of a shipped scenario, or a TOML file. `demo` if none is given."
    ),
    model: str | None = typer.Option(
        None, "--model", help="A model's name, a .gguf file, or a Hugging Face folder."
    ),
    data: str | None = typer.Option(
        None,
        "--data",
        help="`shakespeare`, a .jsonl or .parquet file, or a Hugging Face dataset folder.",
    ),
    settings: list[str] = typer.Option(
        [], "--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated."
    ),
    out: Path | None = typer.Option(None, "--out", help="The run's folder (default: runs/<id>)."),
    resume: Path | None = typer.Option(
        None, "--resume", metavar="DIR", help="Go on with the run in this folder."
    ),
) -> None:
    """Run a federation on this machine, beside the same without privacy and without federation."""
    from sordino.core.errors import ConfigError

    if resume is not None:
        if out is not None or model or data or settings:
            raise ConfigError("--resume goes on with the run's own configuration: give it alone")
        run(None, resume)
        return
    run(load(scenario, model, data, settings), out)


def load(
    scenario: str, model: str | None, data: str | None, settings: list[str]
) -> ExperimentConfig:
    """Read a scenario and apply the command's overrides."""
    import json

    from sordino.core.config import load_experiment
    from sordino.sim.scenarios import scenario_path

    overrides = [
        f"{key}={json.dumps(value)}"
        for key, value in (("model.name", model), ("data.source", data))
        if value is not None
    ]
    return load_experiment(scenario_path(scenario), [*overrides, *settings])


def run(config: ExperimentConfig | None, folder: Path | None) -> Path:
    """Simulate with progress, and show what came of it; without a configuration, resume.

    Returns:
        The run's folder.
    """
    from sordino.cli.progress import watching
    from sordino.cli.summary import show

    console = Console()
    started = time.monotonic()
    with watching(console) as progress:
        progress.say("Opening the model and the data ...")
        from sordino.sim.budget import choose_step_size
        from sordino.sim.run import resume_run
        from sordino.sim.run import simulate as run_simulation

        try:
            if config and config.performance.memory_mb:
                progress.say(f"A step: {choose_step_size(config)}.")
            if config is None:
                result = resume_run(folder or Path(), progress=progress)
            else:
                result = run_simulation(config, folder, progress=progress)
        except KeyboardInterrupt:
            progress.say("Stopped. Go on with: sordino simulate --resume <the run's folder>")
            raise
    show(result.report, console)
    console.print(f"Report: {result.folder / 'report.html'}", soft_wrap=True, markup=False)
    console.print(f"Done in {time.monotonic() - started:.0f} s.")
    return result.folder
