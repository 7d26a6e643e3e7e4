"""One simulated run: the private federation, its two baselines, and what all three left behind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sordino.client.adapter_files import save_adapter
from sordino.client.charged import LEDGER
from sordino.client.data.tokens import TokenizerFile
from sordino.client.model.registry import license_of, upstream_name
from sordino.client.model.store import ModelFiles, cache_root, resolve_model
from sordino.core.config import ExperimentConfig
from sordino.privacy.ledger import export_ledgers
from sordino.privacy.plan import CentralPlan, NoPrivacyPlan
from sordino.server.report import BaseCard, RunReport, claim_of_run, write_card, write_report
from sordino.sim import central, evaluation, folder, partitions, policies, population
from sordino.sim.audit import planting
from sordino.sim.baselines import Baselines
from sordino.sim.evaluation import Losses
from sordino.sim.fleet import Fleet, Trace
from sordino.sim.folder import NO_FEDERATION, NO_PRIVACY, PRIVATE, RunFolder
from sordino.sim.grid import LocalGrid
from sordino.sim.measure import Meter, processor_s
from sordino.sim.outcome import Outcome, make_report
from sordino.sim.population import Population
from sordino.sim.progress import Progress, Silent
from sordino.sim.updates import keep_updates
from sordino.sim.variants import (
    TITLES,
    Base,
    Variant,
    node_ids,
    run_alone,
    run_federation,
    save_adapter_of,
)


@dataclass(frozen=True)
class SimulationResult:
    """What `simulate` made.

    Attributes:
        folder: The run's folder.
        report: What report.json holds.
    """

    folder: Path
    report: RunReport


def simulate(
    config: ExperimentConfig,
    out: Path | None = None,
    *,
    baselines: Baselines | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SimulationResult:
    """Run a federation on this machine, beside the same without privacy and without federation.

    Args:
        config: The experiment.
        out: The run's folder, new or empty; None: ``runs/<id>``.
        baselines: Which are run, and whose figures are known already; None: both are run, or with
            ``trust = "none"``, where the run is a baseline itself, neither.
        cache: The model cache; None: the user's.
        progress: Who is told of it.

    Returns:
        The run's folder and report.

    Raises:
        ConfigError: The configuration or the folder is refused, before anything runs.
        DataError: The data can't be read, or has too few users.
        ModelError: The base can't be opened.
        RoundFailedError: A round ended with too few valid updates.
    """
    cache = cache or cache_root()
    dealt = partitions.deal(config, cache)
    files, people = _open(dealt.config, cache)
    run = folder.create(config, out or Path("runs") / folder.new_run_id())
    dealt.keep(run.root)
    return _execute(dealt.config, run, baselines, files, people, cache, progress or Silent())


def resume_run(
    root: Path, *, cache: Path | None = None, progress: Progress | None = None
) -> SimulationResult:
    """Go on with a run that was stopped, under its own configuration and plans.

    Finished rounds are not run again. A client that had answered a round which wasn't finished
    sends the same bytes again: nothing is charged or drawn twice. Under central trust a round that
    the coordinator had charged is never drawn for again: it takes the update that was kept, or, if
    none was, the round stays charged with nothing released.

    Args:
        root: The run's folder.
        cache: The model cache; None: the user's.
        progress: Who is told of it.

    Raises:
        ConfigError: The folder holds no run.
        RoundFailedError: A round can't be finished: its clients were killed between charge and
            answer, and those rounds stay charged.
    """
    cache = cache or cache_root()
    run, config = folder.reopen(root)
    config = partitions.deal(config, cache).config
    files, people = _open(config, cache)
    return _execute(config, run, None, files, people, cache, progress or Silent())


def _open(config: ExperimentConfig, cache: Path) -> tuple[ModelFiles, Population]:
    central.check_population(config)
    return resolve_model(config.model, cache), population.choose_population(config)


def _execute(
    config: ExperimentConfig,
    run: RunFolder,
    baselines: Baselines | None,
    files: ModelFiles,
    people: Population,
    cache: Path,
    progress: Progress,
) -> SimulationResult:
    began = processor_s()
    progress.say(f"Run {run.run_id} in {run.root}")
    for note in people.notes:
        progress.say(note)
    planting.plant(config, run, people.users, TokenizerFile.load(files.tokenizer))
    base = Base(files.name, upstream_name(files.name), files.sha256, files.config)
    simulation = _Simulation(
        config=config,
        run=run,
        baselines=baselines or Baselines.usual(config),
        base=base,
        quantization=files.quantization,
        users=people.users,
        records=people.records,
        cache=cache,
        progress=progress,
    )
    report = simulation.execute()
    write_report(report, run.root)
    if config.privacy.trust != "none" and not config.privacy.seeded_noise:
        write_report(report, run.root, claim_of_run(run.root))
    write_card(report, _base_card(files), run.adapter)
    run.log("finished", processor_s=processor_s() - began)
    return SimulationResult(run.root, report)


def _base_card(files: ModelFiles) -> BaseCard:
    return BaseCard(
        name=upstream_name(files.name),
        license=license_of(files.name),
        gguf_file=files.weights.name if files.kind == "gguf" else None,
    )


@dataclass(frozen=True)
class _Simulation:
    config: ExperimentConfig
    run: RunFolder
    baselines: Baselines
    base: Base
    quantization: str
    users: tuple[str, ...]
    records: tuple[int, ...]
    cache: Path
    progress: Progress

    def execute(self) -> RunReport:
        names = [self._main, *self.baselines.run]
        nodes = population.Blocks([self._nodes(name) for name in names])
        with LocalGrid(nodes, workers=self.config.performance.workers) as grid:
            before = self._evaluate(grid, "base model", [None] * len(self.users))
            after: dict[str, Losses] = {}
            for block, name in enumerate(names):
                meter = Meter(grid.worker_process_ids)
                variant = self._variant(name, node_ids(block, len(self.users)))
                after[name] = self._run(variant, grid, before, meter)
        self._finish(variant=self._variant(self._main, node_ids(0, len(self.users))))
        return make_report(
            Outcome(
                config=self.config,
                run=self.run,
                base_name=self.base.name,
                base_sha256=self.base.sha256,
                quantization=self.quantization,
                users=self.users,
                records=self.records,
                before=before,
                after=after,
                known=self.baselines.known,
                main=self._main,
            )
        )

    @property
    def _main(self) -> str:
        return NO_PRIVACY if self.config.privacy.trust == "none" else PRIVATE

    def _nodes(self, name: str) -> population.Nodes:
        variant = self._variant(name, range(0))
        plan = variant.plan()
        return population.node_configs(
            self.config,
            self.users,
            state_root=self.run.state(name),
            cache=self.cache,
            without_privacy=isinstance(plan, NoPrivacyPlan),
            policy=policies.simulated_policy(plan, self.run, variant.metric()),
            canaries=partial(planting.node_canaries, self.run),
        )

    def _variant(self, name: str, nodes: range) -> Variant:
        return Variant(name, nodes, self.config, self.base, self.run)

    def _run(self, variant: Variant, grid: LocalGrid, before: Losses, meter: Meter) -> Losses:
        """Run a variant and evaluate what it made on every client's held-out records."""
        if variant.name == NO_FEDERATION:
            adapters = run_alone(variant, grid, self.progress)
            return self._evaluate(grid, TITLES[variant.name], adapters)
        seen: dict[int, Losses] = {}
        trace = self._trace(variant)

        def after_round(number: int) -> dict[str, object]:
            started = time.monotonic()
            path = self.run.round_adapter(variant.name, number)
            seen[number] = self._evaluate(grid, "", [path] * len(self.users))
            plan = variant.plan()
            if self.config.audit.plants:
                keep_updates(self.run, variant.name, plan, number, self._states(variant.name))
            observed = (
                central.observe(plan, number, self._states(variant.name))
                if isinstance(plan, CentralPlan)
                else {}
            )
            if trace is not None:
                trace.note(number, variant.trained_bytes(number))
            return {
                **observed,
                "loss": seen[number].overall(),
                "loss_before": before.overall(),
                "evaluation_s": time.monotonic() - started,
                **meter.read(),
            }

        with grid.fleet(trace.fate) if trace is not None else nullcontext():
            tensors = run_federation(variant, grid, self.progress, after_round)
        last = variant.steps[0]
        if last not in seen:  # a resumed run whose rounds were all done
            save_adapter_of(variant, last, tensors)
            path = self.run.round_adapter(variant.name, last)
            seen[last] = self._evaluate(grid, TITLES[variant.name], [path] * len(self.users))
        return seen[last]

    def _trace(self, variant: Variant) -> Trace | None:
        if not self.config.devices.classes:
            return None
        states = self._states(variant.name)
        fleet = Fleet(self.config.devices)
        return Trace(fleet, self.run, variant.name, variant.nodes[0], states)

    def _evaluate(self, grid: LocalGrid, title: str, adapters: Sequence[Path | None]) -> Losses:
        if title:
            self.progress.phase(f"held-out loss: {title}", len(adapters))
        nodes = self._nodes(self._main)
        on_done = (lambda _: self.progress.advance()) if title else None
        return evaluation.evaluate_all(grid, nodes, adapters, on_done)

    def _finish(self, variant: Variant) -> None:
        """Put the adapter and the exported ledger where the run's reader looks for them."""
        last = folder.load_round(self.run, variant.name, variant.steps[0])
        save_adapter(self.run.adapter, last, lora=self.config.lora, base_name=self.base.upstream)
        plan = variant.plan()
        if isinstance(plan, NoPrivacyPlan):
            return
        ledgers = [central.ledger_of(self.run)]
        if not isinstance(plan, CentralPlan):
            ledgers = [state / LEDGER for state in self._states(PRIVATE)]
        export_ledgers([path for path in ledgers if path.exists()], self.run.ledger)

    def _states(self, name: str) -> list[Path]:
        """The clients' own folders."""
        return [population.state_dir(self.run.state(name), i) for i in range(len(self.users))]
