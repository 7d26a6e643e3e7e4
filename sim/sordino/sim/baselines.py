"""What a run is compared with: which baselines it makes, and which another run made already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sordino.core.config import (
    BaselineConfig,
    ExperimentConfig,
    FederationConfig,
    MetricsConfig,
    PrivacyConfig,
)
from sordino.core.errors import ConfigError, expected
from sordino.server.report import RunReport, UtilityFigures
from sordino.sim.folder import NO_FEDERATION, NO_PRIVACY


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """The baselines of one run.

    Attributes:
        run: Which are run beside it: `NO_PRIVACY`, `NO_FEDERATION`, both or none.
        known: Figures of those that another run made on the same settings.

    Raises:
        ConfigError: A name is of no baseline, or one is both run and known.
    """

    run: tuple[str, ...] = ()
    known: Mapping[str, UtilityFigures] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = (*self.run, *self.known)
        if len(set(names)) < len(names) or not set(names) <= {NO_PRIVACY, NO_FEDERATION}:
            required = f"{NO_PRIVACY} and {NO_FEDERATION}, each at most once"
            raise ConfigError(expected("baselines", names, required))

    @classmethod
    def usual(cls, config: ExperimentConfig) -> Baselines:
        """Both; a run without privacy is a baseline itself and needs none."""
        return cls() if config.privacy.trust == "none" else cls(run=(NO_PRIVACY, NO_FEDERATION))


def without_privacy(config: ExperimentConfig) -> ExperimentConfig:
    """The run without privacy that an experiment is compared with, as an experiment of its own.

    What can make no difference without privacy is set to its default, so that experiments which
    differ in that alone have one and the same baseline.
    """
    privacy, federation = config.privacy, config.federation
    usual = FederationConfig()
    return replace(
        config,
        train=config.baseline.applied_to(config.train),
        baseline=BaselineConfig(),
        privacy=PrivacyConfig(
            trust="none",
            sampling_rate=privacy.sampling_rate,
            expected_batch=privacy.expected_batch,
            seeded_noise=privacy.seeded_noise,
        ),
        metrics=MetricsConfig(),
        federation=replace(federation, population=usual.population, user_rate=usual.user_rate),
    )


def baselines_from(report: RunReport, config: ExperimentConfig) -> Baselines:
    """What a run borrows from the report of its `without_privacy` twin, which ran alone too.

    A client alone publishes nothing and needs no noise. Under local trust a run's own baseline
    without federation is private, another figure, and stays unknown.
    """
    alone = report.utility.no_federation if config.privacy.trust == "central" else None
    found = {NO_PRIVACY: report.utility.no_privacy, NO_FEDERATION: alone}
    return Baselines(known={name: one for name, one in found.items() if one is not None})
