"""What the ClientApp asks of a client: data and model behind one protocol, and a round's work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.records import AdapterManifest, Tensors
from sordino.privacy.ledger import Limit
from sordino.privacy.noise import NoiseSource
from sordino.privacy.plan import NoPrivacyMechanism, RoundMechanism, UserMechanism
from sordino.privacy.policy import Conditions, Policy

NodeConfig = Mapping[str, bool | int | float | str]


@dataclass(frozen=True, kw_only=True)
class LocalWork:
    """What a session is asked to train: everything checked, the adapter complete."""

    run_id: str
    round: int
    adapter: Tensors  # all tensors, as they are before the round
    trained: AdapterManifest  # the tensors to train and to return the change of
    lora: LoraConfig
    train: TrainConfig


class Session(Protocol):
    """One client's data and model, opened once and kept warm."""

    @property
    def client_id(self) -> str:
        """Whose ledger this is."""
        ...

    @property
    def dataset_id(self) -> str:
        """The stable name of the records, which the ledger charges."""
        ...

    @property
    def policy(self) -> Policy:
        """What the device's owner allows: every request is held against it, before anything."""
        ...

    def conditions(self) -> Conditions:
        """What is known of the device now, for a policy that says when to work."""
        ...

    @property
    def limit(self) -> Limit | None:
        """The lifetime cap of the device's own policy, which every charge is held against."""
        ...

    @property
    def state_dir(self) -> Path:
        """This client's own folder: ledger, kept updates, observations."""
        ...

    @property
    def base_sha256(self) -> str:
        """Hash of the base model's file."""
        ...

    @property
    def architecture(self) -> Mapping[str, object]:
        """The base model's ``config.json``."""
        ...

    @property
    def allow_no_privacy(self) -> bool:
        """Whether the owner lets this client train without privacy."""
        ...

    def noise_source(self, run_id: str, round_number: int) -> NoiseSource:
        """The source that this client draws a round's noise and batches from."""
        ...

    def train(
        self, work: LocalWork, mechanism: RoundMechanism | UserMechanism | NoPrivacyMechanism
    ) -> tuple[Tensors, object]:
        """Train; returns the change of each trained tensor, and private observations."""
        ...

    def measure(self, metric: str, adapter: Tensors, lora: LoraConfig) -> NDArray[np.float64]:
        """A metric of each held-out record, exact and private."""
        ...


OpenSession = Callable[[NodeConfig], Session]
