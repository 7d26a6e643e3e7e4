"""What suits a base of some size, where the configuration leaves it open.

Data, chosen by the sweeps that docs/tuning.md shows. A learning rate goes with its optimizer and
with the noise: who names another optimizer gets that one's rate, and a run without privacy its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.core.errors import ModelError
from sordino.core.families import family_of, linear_shapes, sizes_of

Table = Mapping[str, Any]


SWEPT_EPSILON = 8.0


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Settings for bases of one size.

    Attributes:
        below: The size's end: parameters in the linears of the base's blocks.
        targets: The linears that are adapted, where the base has them all.
        optimizer: Under noise.
        rates: Under the noise of `SWEPT_EPSILON`, the learning rate of each optimizer.
        optimizer_without_privacy: Of the run without privacy.
        rates_without_privacy: There, the learning rate of each optimizer.
        sections: Further settings, by section and name.
    """

    below: float
    targets: tuple[str, ...]
    optimizer: str
    rates: Mapping[str, float]
    optimizer_without_privacy: str
    rates_without_privacy: Mapping[str, float]
    sections: Mapping[str, Table]


TINY = Defaults(
    below=2e7,
    targets=("v_proj", "o_proj", "down_proj"),
    optimizer="sgd",
    rates={"sgd": 4.0, "adam": 0.03},
    optimizer_without_privacy="adam",
    rates_without_privacy={"sgd": 0.5, "adam": 0.02},
    sections={
        "train": {"local_steps": 4},
        "privacy": {"clip_norm": 0.3, "sampling_rate": 0.25, "expected_batch": 30.0},
        "performance": {"micro_batch": 16},
    },
)
SMALL = Defaults(
    below=float("inf"),
    targets=("v_proj",),
    optimizer="sgd",
    rates={"sgd": 2.0, "adam": 0.05},
    optimizer_without_privacy="adam",
    rates_without_privacy={"sgd": 0.5, "adam": 0.01},
    sections={
        "train": {"local_steps": 10},
        "privacy": {"clip_norm": 0.5, "sampling_rate": 0.06, "expected_batch": 8.0},
        "performance": {"micro_batch": 4},
    },
)
SIZES = (TINY, SMALL)

_KNOWN: Mapping[str, Mapping[str, object]] = {  # the sizes in the config.json of each
    "pocket": {
        "model_type": "llama",
        "num_hidden_layers": 6,
        "hidden_size": 192,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 512,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
    },
}


def defaults_for(architecture: Mapping[str, object] | None) -> Defaults:
    """The defaults for a base of this ``config.json``; None, or one that is odd: the larger size.

    Whoever opens an odd base will say what is wrong with it.
    """
    try:
        size = block_parameters(architecture or {})
    except ModelError:
        return SMALL
    return next(some for some in SIZES if size < some.below)


def block_parameters(architecture: Mapping[str, object]) -> int:
    """Parameters in the linears of a base's blocks.

    Raises:
        ModelError: The ``config.json`` is of no supported model.
    """
    return sizes_of(architecture).layers * sum(map(math.prod, linear_shapes(architecture).values()))


def with_defaults(table: Table, architecture: Mapping[str, object] | None = None) -> dict[str, Any]:
    """An experiment's table with what it leaves open filled in; nothing that it says is changed.

    Args:
        table: As TOML gives it; what is wrong in it is left for `build` to refuse.
        architecture: The base's ``config.json``. None: read where `model.name` is a folder, and
            known for the models that are known by name. Of any other base only the size is
            guessed, as the larger one.
    """
    model = str(_section(table, "model").get("name", "pocket"))
    architecture = architecture or _KNOWN.get(model) or _config_in(model)
    chosen = defaults_for(architecture)
    privacy = _section(table, "privacy")
    trust = privacy.get("trust", "local")
    filled = {name: dict(settings) for name, settings in chosen.sections.items()}
    if trust == "central":  # bounds a whole update, which is another quantity and wasn't swept
        del filled["privacy"]["clip_norm"]
    else:
        noise = None if trust == "none" else privacy
        filled["train"] |= _optimizer(chosen, _section(table, "train"), noise)
    filled["baseline"] = _optimizer(chosen, _section(table, "baseline"), None)
    if architecture and _has(architecture, chosen.targets):
        filled["lora"] = {"targets": list(chosen.targets)}
    sections = {
        name: {**settings, **table.get(name, {})}
        for name, settings in filled.items()
        if isinstance(table.get(name, {}), Mapping)
    }
    return {**table, **sections}


def _optimizer(chosen: Defaults, given: Table, noise: Table | None) -> dict[str, Any]:
    """The optimizer and its rate; `noise` is the section of privacy, None without privacy."""
    own = chosen.optimizer_without_privacy if noise is None else chosen.optimizer
    rates = chosen.rates_without_privacy if noise is None else chosen.rates
    optimizer = given.get("optimizer", own)
    rate = rates.get(str(optimizer), rates[own])
    if noise is not None and optimizer == "sgd":
        rate = round(rate * _room(noise), 3)
    return {"optimizer": optimizer, "learning_rate": rate}


def _room(noise: Table) -> float:
    """How far the rate can go, next to the swept ε: with more noise a step must be shorter.

    The noise that solves for ε goes about as 1/√ε here, and what a step of SGD may carry of it is
    the same. Adam divides by the noise itself. With less noise the gradients are the limit.
    """
    epsilon = noise.get("epsilon", SWEPT_EPSILON)
    known = isinstance(epsilon, int | float) and "noise_multiplier" not in noise and epsilon > 0
    return min(1.0, math.sqrt(epsilon / SWEPT_EPSILON)) if known else 1.0


def _has(architecture: Mapping[str, object], targets: tuple[str, ...]) -> bool:
    """Whether the base has linears of these names."""
    try:
        modules = family_of(architecture).modules
    except ModelError:
        return False
    return set(targets) <= {module.rpartition(".")[2] for module in modules}


def _section(table: Table, name: str) -> Table:
    found = table.get(name)
    return found if isinstance(found, Mapping) else {}


def _config_in(folder: str) -> Mapping[str, object] | None:
    path = Path(folder).expanduser() / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
