"""`sordino evaluate`: what adapters can do, on data that whoever runs this may read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

if TYPE_CHECKING:
    from sordino.client.evaluation.subject import Subject
    from sordino.client.evaluation.whole import Evaluation, Questions
    from sordino.client.model.store import ModelFiles


def evaluate(
    where: list[Path] = typer.Argument(
        None, help="Runs' folders (each round's adapter), or adapters' folders; none: the base."
    ),
    model: str = typer.Option("", help="The base; by default the one that the adapters name."),
    data: Path | None = typer.Option(
        None, help="Records: a JSONL or Parquet file, or a dataset's folder."
    ),
    user_column: str = typer.Option("user", help="What groups the records."),
    max_tokens: int = typer.Option(512, min=2, help="A longer record is cut."),
    task: list[Path] = typer.Option(
        [], help="A task over local files, as lm-eval-harness writes them (YAML); repeatable."
    ),
    pairs: list[Path] = typer.Option(
        [], help="CrowS-Pairs (CSV) or StereoSet (JSON), for bias; repeatable."
    ),
    card: bool = typer.Option(False, "--card", help="Latency, memory, size and energy as well."),
    limit: int | None = typer.Option(None, min=1, help="Only so many items of each task."),
    form: Literal["table", "json"] = typer.Option("table", "--format", help="How to print it."),
) -> None:
    """Measure the base and adapters: perplexity, tasks, bias, and what running them costs."""
    from rich.console import Console

    from sordino.cli.progress import watching
    from sordino.client.evaluation.whole import examine, parts
    from sordino.core.errors import ConfigError

    asked = _questions(data, user_column, max_tokens, task, pairs, limit)
    if not (parts(asked) or card):
        raise ConfigError("nothing is asked: give --data, --task, --pairs or --card")
    subjects, files = _subjects(where or [], model)
    if card:
        from dataclasses import replace

        asked = replace(asked, card=files)
    with watching(Console(stderr=True)) as progress:
        progress.phase("evaluate", parts(asked) * len(subjects))
        found = [examine(subject, asked, progress.advance) for subject in subjects]
    if form == "json":
        typer.echo(json.dumps([asdict(one) for one in found], indent=1))
    else:
        _show(found)


def _questions(
    data: Path | None,
    user_column: str,
    max_tokens: int,
    tasks: Sequence[Path],
    pairs: Sequence[Path],
    limit: int | None,
) -> Questions:
    from sordino.client.data.files import load
    from sordino.client.evaluation.pairs import read_pairs
    from sordino.client.evaluation.tasks import read_task
    from sordino.client.evaluation.whole import Questions

    return Questions(
        groups=load(data, user_column).records if data else {},
        max_tokens=max_tokens,
        tasks=[read_task(path, limit) for path in tasks],
        pairs={path.stem: read_pairs(path)[:limit] for path in pairs},
    )


def _subjects(where: Sequence[Path], model: str) -> tuple[list[Subject], ModelFiles]:
    from sordino.client.adapter_files import load_adapter
    from sordino.client.data.tokens import TokenizerFile
    from sordino.client.evaluation.subject import bare
    from sordino.client.model.store import cache_root, open_base, resolve_model
    from sordino.core.config import ModelConfig
    from sordino.core.errors import ConfigError

    adapters = {name: load_adapter(path) for name, path in _adapters(where)}
    named = {model} if model else {adapter.base_name for adapter in adapters.values()}
    if len(named) != 1 or "" in named:
        raise ConfigError(f"expected one base for all, got {sorted(named) or 'none'}: give --model")
    files = resolve_model(ModelConfig(name=named.pop()), cache_root())
    base = bare(open_base(files).decoder, TokenizerFile.load(files.tokenizer))
    return [base, *(base.with_adapter(name, one) for name, one in adapters.items())], files


def _adapters(where: Sequence[Path]) -> list[tuple[str, Path]]:
    """Names and folders: of a run its rounds' adapters, where they are kept, else its last."""
    from sordino.client.adapter_files import CONFIG
    from sordino.core.errors import ConfigError, expected

    found: list[tuple[str, Path]] = []
    for path in where:
        rounds = sorted(path.glob("state/private/round-*")) or sorted(path.glob("rounds/*/adapter"))
        if (path / CONFIG).is_file():
            found.append((str(path), path))
        elif rounds:
            found += [(f"{path.name}, {one.name}", one) for one in rounds]
        elif (path / "adapter" / CONFIG).is_file():
            found.append((str(path), path / "adapter"))
        else:
            raise ConfigError(expected("folder", str(path), "a run's, or an adapter's"))
    return found


def _show(found: Sequence[Evaluation]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "what", "measure", show_edge=False)
    for name in ("value", "low", "high", "of"):
        table.add_column(name, justify="right")
    for one in found:
        for group in one.groups:
            of = f"{group.tokens} tokens"
            table.add_row(one.subject, group.group, "loss", _number(group.loss), "", "", of)
            table.add_row("", "", "perplexity", _number(group.perplexity))
        for task in one.tasks:
            for measure in task.measures:
                ends = _number(measure.low), _number(measure.high)
                value = _number(measure.value)
                table.add_row(one.subject, task.task, measure.name, value, *ends, str(task.items))
        for key, figure in asdict(one.card).items() if one.card else ():
            text = figure if isinstance(figure, str) else _number(figure)
            table.add_row(one.subject, "device", key, text)
    Console().print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
