"""The work that every variant does, and which variants there are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sordino.core.config import LoraConfig
from sordino.core.errors import ConfigError, expected
from sordino.core.settings import build, to_table


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One logical batch of one model, the same for all variants.

    Attributes:
        model: As `ModelConfig.name`.
        tokens: Of each record.
        batch: Records of the logical batch.
        rank: Of the adapter, on all linears of the blocks.
        alpha: The adapter's scale times its rank.
        learning_rate: Of Adam, which every variant steps with.
        clip_norm: Of a record's gradient.
        noise_multiplier: Of the step's noise.
        seed: Of the token ids.
    """

    model: str = "smollm2-135m"
    tokens: int = 128
    batch: int = 8
    rank: int = 8
    alpha: int = 16
    learning_rate: float = 1e-4
    clip_norm: float = 1.0
    noise_multiplier: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "batch"):
            if getattr(self, name) < 2:
                raise ConfigError(expected(name, getattr(self, name), ">= 2"))

    def lora(self, aggregation: Literal["ffa", "fedit"]) -> LoraConfig:
        """The adapter's settings."""
        return LoraConfig(aggregation=aggregation, rank=self.rank, alpha=float(self.alpha))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of doing the work.

    Attributes:
        name: What tables call it.
        make: ``module:function`` that opens it: (workload, variant, cache) -> `Stepper`. Importing
            the module imports all that the variant needs.
        about: One line for people.
        aggregation: ``fedit`` trains A and B, ``ffa`` only B.
        micro_batch: Records that go through the model at once.
        checkpoint: Recompute each layer in the backward.
        memory_mb: A budget that chooses the two above; 0: none.
        allocator: ``mmap`` gives freed tensors of 1 MB and more back to the system at once;
            ``glibc`` is its default.
    """

    name: str
    make: str
    about: str = ""
    aggregation: Literal["ffa", "fedit"] = "fedit"
    micro_batch: int = 8
    checkpoint: bool = False
    memory_mb: int = 0
    allocator: Literal["glibc", "mmap"] = "glibc"


class Stepper(Protocol):
    """An open variant."""

    @property
    def base_bytes(self) -> int:
        """What the frozen base holds."""
        ...

    @property
    def state_bytes(self) -> int:
        """What the trained parameters and the optimizer's state hold."""
        ...

    @property
    def quantization(self) -> str:
        """In which form the base is held."""
        ...

    def start_loss(self) -> float:
        """Mean loss per token before any step, in nats: equal work begins with equal losses."""
        ...

    def step(self) -> None:
        """Run one whole step of training."""
        ...

    def torch_peak(self) -> int:
        """Most bytes of torch's allocator in a step, over those before it."""
        ...


@dataclass(frozen=True)
class Row:
    """One record as token ids, of which the loss counts all but the first."""

    ids: NDArray[np.int32]
    targets_mask: NDArray[np.bool_]


def make_rows(work: Workload, vocabulary: int) -> list[Row]:
    """The batch: random tokens, since a dense model's time doesn't depend on them."""
    rng = np.random.default_rng(work.seed)
    mask = np.ones(work.tokens, np.bool_)
    mask[0] = False
    ids = rng.integers(0, vocabulary, (work.batch, work.tokens), dtype=np.int32)
    return [Row(row, mask) for row in ids]


def encode(settings: Workload | Variant) -> bytes:
    """For a worker's pipe."""
    return json.dumps(to_table(settings)).encode()


def decode_workload(data: bytes) -> Workload:
    """What `encode` made of a workload."""
    return build(Workload, json.loads(data))


def decode_variant(data: bytes) -> Variant:
    """What `encode` made of a variant."""
    return build(Variant, json.loads(data))
