"""What coordinator and client say to each other, as frozen data.

A record refuses impossible values when it is made, so that whoever holds one may use it. What
depends on the run (is this the round's plan, are these the round's tensors) is for its reader.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.errors import UpdateRejectedError, WireError, expected

Tensors: TypeAlias = dict[str, NDArray[np.float32]]
"""Adapter tensors by their PEFT name."""

MAX_NAME = 256
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_run_id(value: str) -> bool:
    """Whether a string may name a run: 1 to 64 of A-Z a-z 0-9 . _ -, not beginning with a sign."""
    return _RUN_ID.fullmatch(value) is not None


def require_run_id(value: str) -> None:
    """Refuse a run id that could be anything but a plain name: it ends up in logs and paths."""
    if not is_run_id(value):
        raise WireError(
            expected("run_id", value, "1 to 128 of A-Z a-z 0-9 . _ : -, a letter or digit first")
        )


def require_sha256(field: str, value: str) -> None:
    """Refuse anything but 64 lower-case hexadecimal digits."""
    if not _SHA256.fullmatch(value):
        raise WireError(expected(field, value, "64 lower-case hexadecimal digits"))


def _require_round(value: int) -> None:
    if not 1 <= value < 2**31:
        raise WireError(expected("round", value, "in [1, 2**31)"))


@dataclass(frozen=True)
class TensorSpec:
    """The name and shape of one adapter tensor; the dtype is always float32."""

    name: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= MAX_NAME:
            raise WireError(expected("tensor name", self.name, f"1 to {MAX_NAME} characters"))
        if not self.shape or min(self.shape) < 1:
            raise WireError(expected(f"shape of {self.name}", self.shape, "positive sizes"))

    @property
    def size(self) -> int:
        """Number of parameters."""
        return prod(self.shape)


@dataclass(frozen=True)
class AdapterManifest:
    """Every tensor of a run's adapter, sorted by name. Its hash is what both sides compare."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.tensors]
        if not names or names != sorted(set(names)):
            raise WireError(expected("manifest", names[:4], "not empty, sorted, without repeats"))

    @cached_property
    def sha256(self) -> str:
        """Hash of the one canonical encoding."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        """The manifest's only encoding: a JSON array of [name, [sizes]], ASCII, without spaces."""
        listing = [[spec.name, list(spec.shape)] for spec in self.tensors]
        return json.dumps(listing, separators=(",", ":")).encode()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(spec.name for spec in self.tensors)

    @property
    def parameter_count(self) -> int:
        """Number of parameters of all tensors."""
        return sum(spec.size for spec in self.tensors)

    def subset(self, names: Iterable[str]) -> AdapterManifest:
        """The manifest of some of the tensors."""
        wanted = set(names)
        unknown = sorted(wanted.difference(self.names))
        if unknown:
            raise WireError(expected("tensor", unknown[0], "in the manifest"))
        return AdapterManifest(tuple(spec for spec in self.tensors if spec.name in wanted))


def check_tensors(tensors: Mapping[str, NDArray[np.generic]], manifest: AdapterManifest) -> None:
    """Check that `tensors` are exactly those of `manifest`: names, shapes, float32, finite.

    Raises:
        UpdateRejectedError: With reason ``missing-tensor``, ``extra-tensor``, ``wrong-shape``,
            ``wrong-dtype`` or ``not-finite``.
    """
    missing = [name for name in manifest.names if name not in tensors]
    if missing:
        raise UpdateRejectedError("missing-tensor", missing[0])
    if len(tensors) > len(manifest.tensors):
        extra = sorted(set(tensors).difference(manifest.names))
        raise UpdateRejectedError("extra-tensor", extra[0])
    for spec in manifest.tensors:
        tensor = tensors[spec.name]
        if tensor.shape != spec.shape:
            detail = expected(f"shape of {spec.name}", tensor.shape, f"= {spec.shape}")
            raise UpdateRejectedError("wrong-shape", detail)
        if tensor.dtype != np.float32:
            detail = expected(f"dtype of {spec.name}", str(tensor.dtype), "= float32")
            raise UpdateRejectedError("wrong-dtype", detail)
        if not np.isfinite(tensor).all():
            raise UpdateRejectedError("not-finite", spec.name)


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """One round's work for one client.

    `tensors` holds what differs from the public initial adapter: a tensor that isn't there is the
    one that `sordino.core.adapters.initial_adapter` makes from the manifest and the public seed.
    """

    run_id: str
    round: int
    plan: bytes  # the canonical encoding; its hash is what the ledger charges
    base_sha256: str
    lora: LoraConfig
    train: TrainConfig
    manifest_sha256: str
    tensors: Tensors

    def __post_init__(self) -> None:
        require_run_id(self.run_id)
        _require_round(self.round)
        require_sha256("base_sha256", self.base_sha256)
        require_sha256("manifest_sha256", self.manifest_sha256)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Where in the client's own ledger the round was charged. It says nothing of the data."""

    ledger_head: str
    entry_index: int

    def __post_init__(self) -> None:
        require_sha256("ledger_head", self.ledger_head)
        if not 0 <= self.entry_index < 2**62:
            raise WireError(expected("entry_index", self.entry_index, ">= 0"))


@dataclass(frozen=True, kw_only=True)
class MetricTask:
    """One look at a metric of an adapter, for one client; `tensors` as in a `TrainTask`."""

    run_id: str
    round: int
    plan: bytes  # a metric's own plan, whose run and rounds these are
    base_sha256: str
    lora: LoraConfig
    manifest_sha256: str
    tensors: Tensors

    def __post_init__(self) -> None:
        require_run_id(self.run_id)
        _require_round(self.round)
        require_sha256("base_sha256", self.base_sha256)
        require_sha256("manifest_sha256", self.manifest_sha256)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A client's answer to a look: the noised value that was paid for, and nothing exact."""

    run_id: str
    round: int
    plan_sha256: str
    value: float
    receipt: Receipt

    def __post_init__(self) -> None:
        require_run_id(self.run_id)
        _require_round(self.round)
        require_sha256("plan_sha256", self.plan_sha256)
        if not math.isfinite(self.value):
            raise WireError(expected("value", self.value, "finite"))


@dataclass(frozen=True, kw_only=True)
class Update:
    """A client's answer: the change of the round's trained tensors, and nothing it measured."""

    run_id: str
    round: int
    plan_sha256: str
    tensors: Tensors
    receipt: Receipt | None  # None only where nothing is promised: a plan without privacy

    def __post_init__(self) -> None:
        require_run_id(self.run_id)
        _require_round(self.round)
        require_sha256("plan_sha256", self.plan_sha256)
