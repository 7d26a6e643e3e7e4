"""What can be known of a cell before it runs: its settings, base, data, plan and price."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sordino.client.model.store import ModelFiles, resolve_model
from sordino.core.adapters import adapter_manifest
from sordino.core.config import ExperimentConfig
from sordino.core.errors import ConfigError, expected
from sordino.privacy.accounting import Event
from sordino.privacy.plan import NoPrivacyPlan, metric_plan, plan_of_run
from sordino.sim import central, partitions
from sordino.sim.budget import choose_step_size
from sordino.sim.population import Population, choose_population

T = TypeVar("T")
_RUN = "to-be-checked"


class Checks:
    """Asks each distinct question once, however many cells share it.

    Args:
        cache: The model cache.
        private: The data is private: every cell must be bounded, in one unit for all.
    """

    def __init__(self, cache: Path, *, private: bool) -> None:
        self._cache = cache
        self._private = private
        self._trust: str | None = None
        self._known: dict[Hashable, object] = {}

    def check(self, config: ExperimentConfig, swept: Mapping[str, Any]) -> tuple[Event, ...]:
        """Refuse a cell that can't run, or whose own settings would change nothing.

        Args:
            config: All its settings.
            swept: What it sets by itself.

        Returns:
            What it will charge each client, or under central trust the coordinator.

        Raises:
            SordinoError: Names the setting, its value and what was required.
        """
        _check_epsilon(config, swept)
        if self._private:
            self._check_private(config)
        central.check_population(config)
        files = self._model(config)
        adapter_manifest(files.config, config.lora)
        self._people(config)
        if config.performance.memory_mb:
            choose_step_size(config, self._cache)
        return self._events(config)

    def _check_private(self, config: ExperimentConfig) -> None:
        privacy = config.privacy
        self._trust = self._trust or privacy.trust
        for name, value, ok, required, todo in (
            (
                "trust",
                privacy.trust,
                privacy.trust != "none",
                "other than none with private = true",
                "the baselines without privacy are run anyway, and never leave this machine",
            ),
            (
                "trust",
                privacy.trust,
                privacy.trust == self._trust,
                f"{self._trust}, as in the cells before, with private = true",
                "one budget is of one unit: sweep the trust models one by one",
            ),
            (
                "seeded_noise",
                privacy.seeded_noise,
                not privacy.seeded_noise,
                "false with private = true",
                "whoever knows the seed can take the noise away",
            ),
        ):
            if not ok:
                raise ConfigError(expected(f"privacy.{name}", value, required, todo))
        kind = config.partition.kind
        if kind != "user":
            required = "user with private = true"
            todo = "the budget is kept by user, and dealing records out hides whose they are"
            raise ConfigError(expected("partition.kind", kind, required, todo))

    def _model(self, config: ExperimentConfig) -> ModelFiles:
        return self._once(config.model, lambda: resolve_model(config.model, self._cache))

    def _people(self, config: ExperimentConfig) -> Population:
        def choose() -> Population:
            return choose_population(partitions.deal(config, self._cache).config)

        return self._once((config.data, config.partition), choose)

    def _events(self, config: ExperimentConfig) -> tuple[Event, ...]:
        rounds, steps = config.federation.rounds, config.train.local_steps
        key = (config.privacy, config.federation, config.metrics, steps)

        def solve() -> tuple[Event, ...]:
            metric = metric_plan(config.metrics, config.privacy, run_id=_RUN, rounds=rounds)
            plan = plan_of_run(
                config.privacy,
                config.federation,
                run_id=_RUN,
                rounds=rounds,
                local_steps=steps,
                metric=metric,
            )
            announced = [] if isinstance(plan, NoPrivacyPlan) else [plan.total_event()]
            return (*announced, *([metric.total_event()] if metric else []))

        return self._once(key, solve)

    def _once(self, key: Hashable, ask: Callable[[], T]) -> T:
        if key not in self._known:
            self._known[key] = ask()
        return self._known[key]  # type: ignore[return-value]


def _check_epsilon(config: ExperimentConfig, swept: Mapping[str, Any]) -> None:
    """An ε that decides nothing would make a flat line that looks like a finding."""
    if "privacy.epsilon" not in swept:
        return
    privacy, value = config.privacy, swept["privacy.epsilon"]
    if privacy.noise_multiplier is not None:
        required, todo = "not beside privacy.noise_multiplier", "of the two only one decides"
        raise ConfigError(expected("privacy.epsilon", value, required, todo))
    if privacy.trust == "none":
        required, todo = 'not with privacy.trust = "none"', "the baseline is run anyway"
        raise ConfigError(expected("privacy.epsilon", value, required, todo))
