"""What a memory budget will mean for a run, before it begins."""

from __future__ import annotations

from pathlib import Path

from sordino.client.budget import StepSize, step_cost, step_size
from sordino.client.model.architecture import architecture_of
from sordino.client.model.store import cache_root, resolve_model
from sordino.core.adapters import adapter_manifest, trained_manifest
from sordino.core.config import ExperimentConfig


def choose_step_size(config: ExperimentConfig, cache: Path | None = None) -> StepSize:
    """The choice of a client whose longest record is as long as `data.max_tokens` allows.

    Raises:
        ModelError: The base can't be found or described.
    """
    described = resolve_model(config.model, cache or cache_root()).config
    manifest = adapter_manifest(described, config.lora)
    trained = max(
        trained_manifest(manifest, config.lora.aggregation, turn).parameter_count for turn in (1, 2)
    )
    cost = step_cost(architecture_of(described), config.lora.rank, trained)
    longest = config.train.views * (config.data.max_tokens - 1)
    return step_size(cost, longest, config.performance)
