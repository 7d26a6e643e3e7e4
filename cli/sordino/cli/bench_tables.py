"""What `sordino bench step` prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sordino.sim.bench.run import Around, Measured, Result


def show(result: Result, about: dict[str, Any], console: Console) -> None:
    """Print the variants, the ratios, what surrounds the steps, and where it was measured."""
    console.print(_variants(result))
    if result.ratios:
        console.print(_ratios(result))
    for line in (
        *_imports(result),
        *_budgets(result),
        *_around(result.around),
        *_where(result, about),
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _variants(result: Result) -> Table:
    work = result.request.work
    table = Table(
        title=f"One step: {work.model}, LoRA r = {work.rank} on all linears, "
        f"{work.batch} × {work.tokens} tokens, fp32 compute, "
        f"{result.request.rounds} rounds; medians; memory in MB, torch's over the model",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("variant", no_wrap=True)
    columns = ("s", "CPU\ns", "tokens\n/s", "torch\npeak", "RSS\npeak", "RSS\nwarm", "base")
    for name in (*columns, "loss\nbefore"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in result.measured:
        table.add_row(*_cells(one))
    return table


def _cells(one: Measured) -> Sequence[str]:
    return (
        one.variant.name,
        f"{one.median_s:.3f}",
        f"{statistics.median(one.cpu_seconds):.3f}",
        f"{one.tokens_per_s:.0f}",
        f"{one.torch_peak_mb:.0f}",
        _mb(one.rss_peak_mb),
        _mb(one.rss_warm_peak_mb),
        f"{one.base_mb:.0f}",
        f"{one.start_loss:.4f}",
    )


def _mb(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _ratios(result: Result) -> Table:
    table = Table(title=f"Time: {result.ratio_method}", title_justify="left", box=SIMPLE_HEAD)
    for name in ("ratio", "median", "interval", "target", "", "by CPU time"):
        table.add_column(name, justify="left" if name == "ratio" else "right", no_wrap=True)
    for one in result.ratios:
        table.add_row(
            f"{one.of} ÷ {one.to}",
            f"{one.median:.3f}",
            f"{one.low:.3f} to {one.high:.3f}",
            "" if one.limit is None else f"≤ {one.limit:.2f}",
            one.verdict,
            f"{one.cpu_median:.3f}",
        )
    return table


def _imports(result: Result) -> list[str]:
    """Resident memory after the imports alone, by which large libraries they were."""
    seen = {m.heavy_modules: m.imports_mb for m in result.measured}
    return [
        f"Imports alone: {_mb(resident)} MB with {', '.join(modules) or 'no large library'}"
        for modules, resident in sorted(seen.items())
    ]


def _budgets(result: Result) -> list[str]:
    lines = []
    for one in result.budgets:
        head = f"Torch peak ≤ {one.torch_peak_mb:.0f} MB ({one.aggregation}): "
        if one.ratio is None:
            lines.append(f"{head}no measured setting")
            continue
        ratio = one.ratio
        lines.append(
            f"{head}{ratio.of}, {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) of the "
            f"fastest, {ratio.to}; target ≤ {ratio.limit:.2f}: {ratio.verdict}"
        )
    return lines


def _around(around: Around | None) -> list[str]:
    if around is None:
        return []
    together, one = sum(around.shared_pss_mb), around.file_mb
    middle = statistics.median
    return [
        f"Base: a file of {one:.1f} MB; {len(around.shared_pss_mb)} processes that read all of it "
        f"hold {together:.1f} MB together (PSS; {sum(around.shared_rss_mb):.1f} MB if each is "
        f"counted alone), {sum(around.shared_private_mb):.1f} MB of it their own",
        f"Open the model in a new process: {middle(around.cold_to_first_step_s):.2f} s to the "
        f"first step, after {middle(around.cold_imports_s):.2f} s of imports; large libraries "
        f"imported: {', '.join(around.heavy_modules) or 'none'}",
        f"Give a warm process another client: {middle(around.switch_ms):.0f} ms "
        f"({min(around.switch_ms):.0f} to {max(around.switch_ms):.0f})",
    ]


def _where(result: Result, about: dict[str, Any]) -> list[str]:
    machine = about["machine"]
    governor = machine["governor"] or "unknown governor"
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    before, after = (f"{load[0]:.1f}" for load in result.load)
    siblings = machine["threads_per_core"] or "unknown"
    return [
        f"Machine: {machine['model'] or machine['processor']}, {machine['cores']} logical cores "
        f"(threads per core: {siblings}), {machine['memory_mb']} MB, {governor}; "
        f"{result.request.threads} thread(s) a process; load {before} before, {after} after",
        f"Versions: {versions}. {about['date']}",
    ]
