"""One cell, or one baseline, in a process of the sweep: a whole run in a folder of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sordino.core.config import ExperimentConfig
from sordino.core.errors import ConfigError, SordinoError
from sordino.core.settings import build, to_table
from sordino.server.report import RunReport, from_json
from sordino.sim.baselines import Baselines, baselines_from
from sordino.sim.folder import NO_FEDERATION, RunFolder
from sordino.sim.run import simulate

RUN = f"{__name__}:run_job"
ABANDONED = "abandoned"


def job(
    config: ExperimentConfig, folder: Path, *, baseline: Path | None, cache: Path, keep: bool
) -> bytes:
    """What a worker needs to know.

    Args:
        config: All settings.
        folder: The run's.
        baseline: The finished run without privacy to stand beside this one; None: this is one.
        cache: The model cache.
        keep: What an earlier, unfinished attempt charged is kept.
    """
    work = {
        "config": to_table(config),
        "folder": str(folder),
        "baseline": baseline and str(baseline),
        "cache": str(cache),
        "keep": keep,
    }
    return json.dumps(work).encode()


def run_job(text: bytes) -> bytes:
    """Run it from its beginning, whatever an earlier attempt left; nothing is returned.

    A client that was killed at its work leaves a charged round without an update, and the run could
    only go on without that client: a cell that did would differ from its neighbours.
    """
    work: dict[str, Any] = json.loads(text)
    config = build(ExperimentConfig, work["config"])
    folder = Path(work["folder"])
    set_aside(folder, keep=work["keep"])
    baselines = Baselines()
    if work["baseline"]:
        baselines = baselines_from(read_report(Path(work["baseline"])), config)
    elif config.privacy.trust == "none":
        baselines = Baselines(run=(NO_FEDERATION,))
    simulate(config, folder, baselines=baselines, cache=Path(work["cache"]))
    return b""


def set_aside(folder: Path, *, keep: bool) -> None:
    """Make room for a run: an unfinished one is thrown away, or kept where its charges count.

    Raises:
        ConfigError: The folder holds something else than an unfinished run.
    """
    if not folder.exists():
        return
    run = RunFolder(folder, folder.name)
    ours = not any(folder.iterdir()) or (folder / "state").is_dir()
    if run.finished or not ours:
        raise ConfigError(f"{folder} holds something else than a run to begin anew: move it away")
    shelf = folder.parent.parent / ABANDONED
    shelf.mkdir(exist_ok=True)
    number = len(list(shelf.glob(f"{folder.name}~*"))) + 1
    moved = folder.rename(shelf / f"{folder.name}~{number}")  # whole or not at all
    if not keep:
        shutil.rmtree(moved)


def read_report(folder: Path) -> RunReport:
    """The report of a finished run.

    Raises:
        SordinoError: There is none, or it can't be read.
    """
    path = folder / "report.json"
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SordinoError(f"can't read {path}: {error.strerror}") from error
