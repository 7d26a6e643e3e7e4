"""The three runs that a simulation compares: private, without privacy, without federation.

All three go through the same ClientApp and the same validation. The baselines exist in the
simulation alone: nothing of them is released, so the run's ledger charges the private run only. In
a deployment each would be a release of its own, and charged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import Context, Message, RecordDict

from sordino.client.adapter_files import save_adapter
from sordino.core.adapters import adapter_manifest, initial_adapter, trained_manifest
from sordino.core.config import ExperimentConfig, TrainConfig
from sordino.core.errors import RoundFailedError
from sordino.core.records import Tensors
from sordino.privacy.plan import (
    AnyPlan,
    CentralPlan,
    MetricPlan,
    NoPrivacyPlan,
    decode_plan,
    metric_plan,
    plan_of_run,
)
from sordino.server.app import federation_app
from sordino.server.metrics import looks_of
from sordino.server.plans import keep_metric_plan, read_metric_plan
from sordino.server.rounds import MemoryRounds
from sordino.server.strategy import RoundReport, SordinoStrategy
from sordino.sim import central
from sordino.sim.folder import (
    NO_FEDERATION,
    NO_PRIVACY,
    PRIVATE,
    RunFolder,
    last_round,
    load_round,
    save_round,
)
from sordino.sim.grid import FIRST_NODE_ID, LocalGrid
from sordino.sim.looks import log_look
from sordino.sim.progress import Progress

TITLES = {
    PRIVATE: "private federation",
    NO_PRIVACY: "the same without privacy",
    NO_FEDERATION: "the same without federation",
}


@dataclass(frozen=True)
class Base:
    """What a variant needs to know of the base.

    Attributes:
        name: What a configuration calls it.
        upstream: What others call it, for the adapter's card.
        sha256: Of its file.
        architecture: Its config.json.
    """

    name: str
    upstream: str
    sha256: str
    architecture: Mapping[str, object]


@dataclass(frozen=True)
class Variant:
    """One of the compared runs, ready to go.

    Attributes:
        name: `PRIVATE`, `NO_PRIVACY` or `NO_FEDERATION`.
        nodes: Its clients in the grid; each variant has its own, with folders of their own.
        config: The experiment.
        base: The frozen base.
        folder: Where rounds are kept.
    """

    name: str
    nodes: Sequence[int]
    config: ExperimentConfig
    base: Base
    folder: RunFolder

    @property
    def steps(self) -> tuple[int, int]:
        """Rounds, and local steps in each. A client alone does all its steps in one go."""
        rounds, steps = self.config.federation.rounds, self.config.train.local_steps
        return (1, rounds * steps) if self.name == NO_FEDERATION else (rounds, steps)

    def plan(self) -> AnyPlan:
        """The variant's plan, kept on disk so that a resumed run charges under the same one."""
        path = _plan_path(self.folder, self.name)
        if path.exists():
            return decode_plan(path.read_bytes())
        metric = self.metric()
        plan = self._new_plan(metric)
        path.parent.mkdir(parents=True, exist_ok=True)
        keep_metric_plan(path.parent, metric)
        part = path.with_suffix(".part")
        part.write_bytes(plan.canonical())
        part.replace(path)
        return plan

    def metric(self) -> MetricPlan | None:
        """The plan of the metric that the private run buys, kept beside its own."""
        if self.name != PRIVATE:
            return None
        kept = read_metric_plan(_plan_path(self.folder, self.name).parent)
        return kept or metric_plan(
            self.config.metrics,
            self.config.privacy,
            run_id=self.folder.run_id,
            rounds=self.steps[0],
        )

    def _new_plan(self, metric: MetricPlan | None) -> AnyPlan:
        privacy = self.config.privacy
        # A client that trains alone trusts no coordinator, and gives nothing away: no noise.
        if self.name == NO_PRIVACY or (self.name, privacy.trust) == (NO_FEDERATION, "central"):
            privacy = replace(privacy, trust="none")
        rounds, steps = self.steps
        run_id = self.folder.run_id
        if self.name != PRIVATE:
            run_id = f"{run_id}.{self.name.replace('_', '-')}"
        return plan_of_run(
            privacy,
            self.config.federation,
            run_id=run_id,
            rounds=rounds,
            local_steps=steps,
            metric=metric,
        )

    def strategy(self, *, min_updates: int | None = None) -> SordinoStrategy:
        """The strategy of this variant's rounds."""
        config, plan = self.config, self.plan()
        federation = config.federation
        if min_updates is not None:
            federation = replace(federation, min_updates=min_updates)
        manifest = adapter_manifest(self.base.architecture, config.lora)
        releases = None
        if isinstance(plan, CentralPlan):
            releases = central.releases_of(plan, self.folder, config)
        return SordinoStrategy(
            plan=plan,
            manifest=manifest,
            base_sha256=self.base.sha256,
            lora=config.lora,
            train=replace(self._train(), local_steps=self.steps[1]),
            federation=federation,
            releases=releases,
            looks=looks_of(config, self.metric(), manifest=manifest, base_sha256=self.base.sha256),
        )

    def _train(self) -> TrainConfig:
        config = self.config
        if isinstance(self.plan(), NoPrivacyPlan) and config.privacy.trust != "none":
            return config.baseline.applied_to(config.train)
        return config.train

    def trained_bytes(self, number: int) -> int:
        """What one client's update of a round holds, names left aside."""
        manifest = adapter_manifest(self.base.architecture, self.config.lora)
        trained = trained_manifest(manifest, self.config.lora.aggregation, number)
        return 4 * trained.parameter_count

    def initial(self) -> Tensors:
        """The public adapter that every variant starts from."""
        manifest = adapter_manifest(self.base.architecture, self.config.lora)
        return initial_adapter(manifest, self.config.lora.init_seed)


def read_plan(folder: RunFolder, name: str) -> AnyPlan:
    """The plan that a variant ran under."""
    return decode_plan(_plan_path(folder, name).read_bytes())


def _plan_path(folder: RunFolder, name: str) -> Path:
    return folder.state(name) / "plan.json"


def node_ids(block: int, clients: int) -> range:
    """Node ids of the `block`-th variant's clients."""
    start = FIRST_NODE_ID + block * clients
    return range(start, start + clients)


def run_federation(
    variant: Variant,
    grid: LocalGrid,
    progress: Progress,
    after_round: Callable[[int], Mapping[str, object]],
) -> Tensors:
    """Run the rounds that aren't done yet, through a Flower ServerApp.

    Args:
        variant: `PRIVATE` or `NO_PRIVACY`.
        grid: Where its clients are.
        progress: Advanced with each reply.
        after_round: Called with the round's number when its adapter is on disk; its figures go
            with the round's line in metrics.jsonl.

    Returns:
        The adapter after the last round.
    """
    strategy = variant.strategy()
    done = last_round(variant.folder, variant.name)
    adapter = load_round(variant.folder, variant.name, done) if done else variant.initial()
    rounds = variant.steps[0]
    if done == rounds:
        return adapter
    asked = round(len(variant.nodes) * _asked_share(strategy.plan))
    progress.phase(TITLES[variant.name], (rounds - done) * asked)

    def keep(number: int, tensors: Tensors, report: RoundReport) -> None:
        save_adapter_of(variant, number, tensors)
        log_look(variant.folder, strategy.looks, number)
        figures = {**round_figures(report), **after_round(number)}
        save_round(variant.folder, variant.name, number, figures)

    course = MemoryRounds(
        strategy, adapter, node_ids=variant.nodes, start_round=done + 1, on_round=keep
    )
    app = federation_app(course, on_reply=lambda _: progress.advance())
    app(grid, Context(1, 1, {}, RecordDict(), {}))
    return course.adapter


def _asked_share(plan: AnyPlan) -> float:
    return plan.sampling_rate if isinstance(plan, CentralPlan) else 1.0


def save_adapter_of(variant: Variant, number: int, tensors: Tensors) -> None:
    """Put a round's adapter on disk."""
    folder = variant.folder.round_adapter(variant.name, number)
    save_adapter(folder, tensors, lora=variant.config.lora, base_name=variant.base.upstream)


def round_figures(report: RoundReport) -> dict[str, object]:
    """What the coordinator saw of a round, for metrics.jsonl."""
    return {
        "released": report.settled != "abandoned",
        "updates": None if report.settled else report.received,
        "dropped": report.reasons,
        "bytes_up": report.bytes_up,
        "bytes_down": report.bytes_down,
        "wall_s": report.wall_s,
    }


def run_alone(variant: Variant, grid: LocalGrid, progress: Progress) -> list[Path]:
    """Let each client train alone, and keep each one's own adapter.

    Returns:
        Folders of the adapters, in the order of the clients.

    Raises:
        RoundFailedError: A client's update was missing or refused.
    """
    folders = [
        variant.folder.state(variant.name) / f"alone-{i:05d}" for i in range(len(variant.nodes))
    ]
    todo = [i for i, folder in enumerate(folders) if not folder.is_dir()]
    if not todo:
        return folders
    progress.phase(TITLES[variant.name], len(todo))
    start = variant.initial()
    strategies = {i: variant.strategy(min_updates=1) for i in todo}
    messages: list[Message] = []
    for i, strategy in strategies.items():
        messages += strategy.open_round(1, start, [variant.nodes[i]])
    owners = {message.metadata.dst_node_id: i for i, message in zip(todo, messages, strict=True)}
    for reply in grid.send_and_receive(messages, timeout=variant.config.federation.round_timeout_s):
        index = owners.pop(reply.metadata.src_node_id)
        adapter, _ = strategies[index].close_round([reply])
        save_adapter(
            folders[index], adapter, lora=variant.config.lora, base_name=variant.base.upstream
        )
        progress.advance()
    if owners:
        raise RoundFailedError(f"{len(owners)} clients did not answer before the timeout")
    return folders


def observations(state_dir: Path) -> list[dict[str, object]]:
    """What a simulated device noted of its own training: the simulation may look, nobody else."""
    path = state_dir / "observations.jsonl"
    if not path.exists():
        return []
    return [json.loads(line)["observations"] for line in path.read_text().splitlines()]
