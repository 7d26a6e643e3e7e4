"""An adapter on disk as PEFT has it: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sordino.core.adapters import other_of, parse_name, peft_layout
from sordino.core.config import LoraConfig
from sordino.core.durable import write_whole
from sordino.core.errors import ModelError, UpdateRejectedError, expected
from sordino.core.families import names
from sordino.core.records import AdapterManifest, Tensors, check_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_BASE_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class SavedAdapter:
    """An adapter as it was read.

    Attributes:
        tensors: By PEFT name, float32 and finite, A and B for every adapted linear.
        rank: Rows of every A.
        alpha: The numerator of the scale.
        targets: Names of the adapted linears, sorted.
        base_name: The model that it belongs to, as the one who saved it called it.
    """

    tensors: Tensors
    rank: int
    alpha: float
    targets: tuple[str, ...]
    base_name: str

    @property
    def scale(self) -> float:
        """What the product of B and A is multiplied with."""
        return self.alpha / self.rank


def save_adapter(
    folder: Path, tensors: Mapping[str, NDArray[np.float32]], lora: LoraConfig, base_name: str
) -> None:
    """Write an adapter so that ``PeftModel.from_pretrained(model, folder)`` loads it.

    Each file is written whole. The config comes last: a folder without it holds no adapter.

    Args:
        folder: Made if need be.
        tensors: Every tensor of the adapter, by PEFT name.
        lora: The settings that it was trained with.
        base_name: The base model's name, such as ``organisation/model``: where it happens to lie
            on this machine says nothing to the one who gets the adapter.

    Raises:
        ModelError: The name is a path, a tensor isn't as the settings have it, or the folder can't
            be written. Nothing is written unless all is in order.
    """
    if not _BASE_NAME.fullmatch(base_name):
        raise ModelError(
            expected("base_model_name_or_path", base_name, "a model's name, not a path")
        )
    layout = peft_layout(tensors)
    _check(tensors, lora.rank, tuple(sorted(set(lora.targets))), "the adapter")
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in sorted(tensors.items())}
    try:
        write_whole(folder / WEIGHTS, save(contiguous, metadata={"format": "pt"}))
        table = json.dumps({**_peft_config(lora, base_name), **layout}, indent=2, sort_keys=True)
        write_whole(folder / CONFIG, table + "\n")
    except OSError as error:
        raise ModelError(f"can't write the adapter to {folder}: {error.strerror}") from error


def load_adapter(folder: Path, manifest: AdapterManifest | None = None) -> SavedAdapter:
    """Read an adapter that `save_adapter` or PEFT has written.

    Args:
        folder: Holds the two files.
        manifest: What the base and the run need; the adapter must have exactly these tensors.

    Raises:
        ModelError: A file is missing or damaged, the adapter uses something other than plain LoRA
            on a decoder's linears, or a tensor is misnamed, misshapen, of another type, not finite.
    """
    try:
        table = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors: Tensors = load((folder / WEIGHTS).read_bytes())
    except (OSError, ValueError, SafetensorError, KeyError) as error:
        raise ModelError(f"can't read an adapter from {folder}: {error}") from error
    rank, alpha, targets = _read_config(table, folder)
    _check(tensors, rank, targets, str(folder))
    if manifest is not None:
        try:
            check_tensors(tensors, manifest)
        except UpdateRejectedError as error:
            raise ModelError(f"the adapter in {folder} is not for this model: {error}") from error
    return SavedAdapter(
        tensors=tensors,
        rank=rank,
        alpha=alpha,
        targets=targets,
        base_name=str(table.get("base_model_name_or_path") or ""),
    )


def _peft_config(lora: LoraConfig, base_name: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "use_rslora": False,
    }


def _read_config(table: object, folder: Path) -> tuple[int, float, tuple[str, ...]]:
    where = f"in {folder / CONFIG}"
    if not isinstance(table, dict):
        raise ModelError(expected(f"the content of {folder / CONFIG}", table, "a JSON object"))
    if table.get("peft_type") != "LORA":
        raise ModelError(expected(f"peft_type {where}", table.get("peft_type"), '"LORA"'))
    for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if table.get(name):
            raise ModelError(expected(f"{name} {where}", table[name], "unset: only plain LoRA is"))
    rank, alpha, targets = table.get("r"), table.get("lora_alpha"), table.get("target_modules")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ModelError(expected(f"r {where}", rank, "a whole number > 0"))
    if not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ModelError(expected(f"lora_alpha {where}", alpha, "finite and > 0"))
    if not isinstance(targets, list) or not targets or not all(isinstance(t, str) for t in targets):
        raise ModelError(expected(f"target_modules {where}", targets, "a list of names"))
    return rank, float(alpha), tuple(sorted(set(targets)))


def _check(
    tensors: Mapping[str, NDArray[Any]], rank: int, targets: tuple[str, ...], where: str
) -> None:
    """Names, the shapes that rank decides, types and values; the widths are the manifest's."""
    found: set[str] = set()
    for name, tensor in tensors.items():
        known = parse_name(name)
        meant = [t for t in targets if known and names(known.family, t, known.module)]
        if known is None or not meant:
            raise ModelError(f"{where} has a tensor {name} that is none of {', '.join(targets)}")
        found.update(meant)
        if other_of(name) not in tensors:
            raise ModelError(f"{where} has {name} without its counterpart")
        if tensor.dtype != np.float32:
            raise ModelError(expected(f"dtype of {name}", str(tensor.dtype), "float32"))
        if tensor.ndim != 2 or tensor.shape[0 if known.matrix == "A" else 1] != rank:
            raise ModelError(expected(f"shape of {name}", tensor.shape, f"of rank {rank}"))
        if not np.isfinite(tensor).all():
            raise ModelError(f"{name} holds a NaN or an infinity")
    if missing := sorted(set(targets) - found):
        raise ModelError(f"{where} has no tensor of {missing[0]}, which its settings name")
