"""A step by one record at a time, in float64, with nothing of the engine's own arithmetic.

The model is transformers', the adapter PEFT's, the gradients torch autograd's, the clip and the sum
are written out; a GGUF file's weights are what the `gguf` library reads from it. An error that the
engine makes in its forward and its backward alike can't hide here.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from sordino.client import train
from sordino.client.adapter_files import load_adapter, save_adapter
from sordino.client.lora import LoraAdapter
from sordino.client.model.decoder import Decoder
from sordino.client.model.matrices import Matrix
from sordino.client.model.store import open_base, resolve_model
from sordino.core.adapters import adapter_manifest, trained_manifest
from sordino.core.config import LoraConfig, ModelConfig, PerformanceConfig, TrainConfig
from sordino.privacy.plan import Plan, RoundMechanism
from support import families, tiny
from support.rounds import Still, mechanism

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}  # of each tensor's norm
POISON = 250  # a token that no other record has
DIVISOR = 3.0
TURNS = {
    "ffa": ("ffa", 1),
    "rolora B": ("rolora", 1),
    "rolora A": ("rolora", 2),
    "fedit": ("fedit", 1),
}
TARGETS = {"all": ("attention", "mlp"), "attention": ("attention",), "mlp": ("mlp",)}
# Ordinary, of one prediction, longer than any window, and of one target after a long prompt.
RECORDS = (
    tiny.record(12, 1),
    tiny.record(2, 2),
    tiny.record(40, 3, masked=20),
    tiny.record(7, 4),
    tiny.record(25, 5, masked=24),
)
# K blocks have 256 values, so they need a wider model.
_WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256, "num_hidden_layers": 1}
CHANGES = {"Q4_K": _WIDE, "Q6_K": _WIDE}


@dataclass(frozen=True)
class Reference:
    """What each record gives by itself.

    Attributes:
        tensors: The adapter's values, by PEFT name.
        lora: Its settings.
        losses: Of each record.
        gradients: Of each record, for A and B alike, by PEFT name.
    """

    tensors: dict[str, np.ndarray]
    lora: LoraConfig
    losses: list[float]
    gradients: list[dict[str, torch.Tensor]]

    def norms(self, trained: Sequence[str]) -> list[float]:
        """Of each record's whole gradient over the tensors that train."""
        return [math.hypot(*(float(g[n].norm()) for n in trained)) for g in self.gradients]

    def clip_norm(self, trained: Sequence[str]) -> float:
        """One that clips some of the records, none of them nearly, and leaves the others."""
        norms = sorted(self.norms(trained))
        ratio, between = max((b / a, math.sqrt(a * b)) for a, b in itertools.pairwise(norms))
        assert ratio > 1.02
        return between

    def clipped(self, trained: Sequence[str], clip_norm: float) -> list[dict[str, torch.Tensor]]:
        """Each record's gradient, no longer than the clip norm."""
        return [
            {n: g[n] * min(1.0, clip_norm / norm) for n in trained}
            for g, norm in zip(self.gradients, self.norms(trained), strict=True)
        ]


@dataclass(frozen=True)
class Model:
    """An open base, and the same weights in transformers' own model, in float64."""

    decoder: Decoder
    made: torch.nn.Module
    config: Mapping[str, object]
    folder: Path
    references: dict[str, Reference] = field(default_factory=dict)

    def reference(self, targets: str) -> Reference:
        """`RECORDS`, one at a time, with an adapter on some of the linears."""
        if targets not in self.references:
            lora = LoraConfig(rank=4, alpha=6.0, targets=TARGETS[targets])
            tensors, adapted = self.adapted(lora)
            alone = [one_at_a_time(adapted, record) for record in RECORDS]
            self.references[targets] = Reference(
                tensors, lora, [loss for loss, _ in alone], [g for _, g in alone]
            )
        return self.references[targets]

    def adapted(self, lora: LoraConfig) -> tuple[dict[str, np.ndarray], PeftModel]:
        """A random adapter, saved by us and loaded by PEFT over a copy of the model."""
        folder = self.folder / "-".join(lora.targets)
        manifest = adapter_manifest(self.config, lora)
        save_adapter(folder, tiny.adapter_tensors(manifest), lora, "sordino/tiny")
        twin = copy_of(self.made, self.decoder)
        adapted = PeftModel.from_pretrained(twin, folder, is_trainable=True).double().eval()
        return load_adapter(folder, manifest).tensors, adapted


def open_model(folder: Path, case: str, kind: str) -> Model:
    """Write a tiny random model to disk and open it.

    Args:
        folder: Where.
        case: One of `families.CONFIGS`.
        kind: A block type for a GGUF file; ``int8`` or ``nf4`` for a Hugging Face folder.
    """
    made = families.model(case, **CHANGES.get(kind, {}))
    if kind in ("int8", "nf4"):
        path = families.write_folder(folder / "hf", made)
        settings = ModelConfig(name=str(path), quantization=kind)
    else:
        path = families.write_gguf(folder / "tiny.gguf", case, made, kind)
        _round_epsilon(made)
        settings = ModelConfig(name=str(path))
    files = resolve_model(settings, folder / "cache")
    decoder = open_base(files).decoder
    made = made.double()
    if files.kind == "folder":  # the codes are our own, and so are the weights they stand for
        families.put_weights(made, decoder)
    families.make_exact(made, decoder)
    return Model(decoder, made, files.config, folder)


def _round_epsilon(made: torch.nn.Module) -> None:
    """As a GGUF file has it: in float32."""
    for module in made.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = float(np.float32(module.eps))


def copy_of(made: torch.nn.Module, decoder: Decoder) -> torch.nn.Module:
    """A twin for PEFT, which puts its layers into the model that it is given."""
    for module in made.modules():  # bound closures would go on pointing at the first model
        module.__dict__.pop("forward", None)
    twin = copy.deepcopy(made)
    families.make_exact(made, decoder)
    families.make_exact(twin, decoder)
    return twin


def one_at_a_time(adapted: PeftModel, one: tiny.Record) -> tuple[float, dict[str, torch.Tensor]]:
    """One record's mean loss over its counted tokens, and its gradient by PEFT name."""
    ids = torch.from_numpy(one.ids).long()
    logits = adapted(input_ids=ids[None]).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    loss = losses[torch.from_numpy(one.targets_mask[1:])].mean()
    named = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(named.values()))
    names = (name.replace(".default", "") for name in named)
    return loss.item(), dict(zip(names, gradients, strict=True))


# --- the engine ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class PoisonedRows:
    """An embedding in which one token's row is NaN; as an output matrix it is what it was."""

    matrix: Matrix

    def gather(self, ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        bad = ids == POISON  # which may lie beyond the vocabulary
        return self.matrix.gather(ids.masked_fill(bad, 0), dtype).masked_fill(
            bad[:, None], torch.nan
        )

    def __getattr__(self, name: str):
        return getattr(self.matrix, name)


def poisoned(decoder: Decoder) -> Decoder:
    """The same, but that a record with the token `POISON` has no finite loss or gradient."""
    name = decoder.architecture.parts.embedding
    matrices = {**decoder.matrices, name: PoisonedRows(decoder.matrices[name])}
    return replace(decoder, matrices=matrices)


def broken(length: int, seed: int = 90) -> tiny.Record:
    """A record that is NaN to a `poisoned` decoder from its first token on."""
    record = tiny.record(length, seed)
    record.ids[0] = POISON
    return record


def trained_names(model: Model, reference: Reference, turn: str) -> tuple[str, ...]:
    aggregation, round_number = TURNS[turn]
    manifest = adapter_manifest(model.config, reference.lora)
    return trained_manifest(manifest, aggregation, round_number).names


def samples_of(
    decoder: Decoder,
    reference: Reference,
    trained: Sequence[str],
    records: Sequence[tiny.Record] = RECORDS,
    *,
    dtype: torch.dtype = torch.float64,
    recompute: bool = False,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Each record's loss and gradients, by name ``[records, ...]``, as the engine has them."""
    lora = reference.lora
    adapter = LoraAdapter(
        reference.tensors, scale=lora.alpha / lora.rank, trained=trained, dtype=dtype
    )
    losses = train.backward(
        decoder, adapter, records, recompute=recompute, reuse=True, dtype=dtype
    )  # fmt: skip
    assert set(adapter.parameters) == set(trained)
    return losses, {n: p.grad_sample.clone() for n, p in adapter.parameters.items()}


@contextmanager
def grid_finer_than_any_error() -> Iterator[None]:
    """Let plans sum on a grid of C·2⁻⁵⁰, so that a sum shows what the gradients were."""

    def finest(self, size):
        return 2.0 ** (math.frexp(self.clip_norm)[1] - 51)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "grid_step", finest)
        yield


@contextmanager
def sums_before_noise() -> Iterator[list[np.ndarray]]:
    """Every clipped sum that reaches the mechanism, as it is handed over."""
    sums: list[np.ndarray] = []
    honest = RoundMechanism.release

    def watched(self, total):
        sums.append(np.array(total))
        return honest(self, total)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RoundMechanism, "release", watched)
        yield sums


@dataclass(frozen=True)
class Round:
    """What a round of the engine did.

    Attributes:
        sums: Each step's clipped sum before the noise, cut into its tensors by name.
        update: What leaves.
        seen: What the device saw.
    """

    sums: list[dict[str, torch.Tensor]]
    update: dict[str, np.ndarray]
    seen: train.Observations


def round_of(
    folder: Path,
    decoder: Decoder,
    reference: Reference,
    trained: Sequence[str],
    records: Sequence[tiny.Record],
    *,
    clip_norm: float,
    dtype: torch.dtype = torch.float64,
    performance: PerformanceConfig | None = None,
    source=None,
    learning_rate: float = 1.0,
    steps: int = 1,
) -> Round:
    """Run the engine's own round on every record, without noise unless a source is given."""
    opened = mechanism(
        folder, source or Still(), clip_norm=clip_norm, divisor=DIVISOR, steps_per_round=steps
    )
    with sums_before_noise() as sums:
        update, seen = train.train_round(
            decoder,
            reference.tensors,
            trained,
            records,
            opened,
            round_number=1,
            lora=reference.lora,
            train=TrainConfig(learning_rate=learning_rate, local_steps=steps),
            performance=performance or PerformanceConfig(),
            dtype=dtype,
        )
    shapes = {n: reference.tensors[n].shape for n in reference.tensors if n in set(trained)}
    return Round([_cut(torch.from_numpy(total), shapes) for total in sums], update, seen)


def _cut(total: torch.Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    parts = total.split([math.prod(s) for s in shapes.values()])
    return {n: p.view(shapes[n]) for n, p in zip(shapes, parts, strict=True)}


# --- comparisons --------------------------------------------------------------------------------


def assert_same_samples(
    losses: torch.Tensor,
    samples: Mapping[str, torch.Tensor],
    reference: Reference,
    tolerance: float,
) -> None:
    """Each record's loss and each tensor of its gradient, to `tolerance` of the tensor's norm."""
    for i, (loss, gradients) in enumerate(zip(reference.losses, reference.gradients, strict=True)):
        assert losses[i].item() == pytest.approx(loss, rel=tolerance)
        whole = math.hypot(*(float(gradients[name].norm()) for name in samples))
        for name, sample in samples.items():
            length = float(gradients[name].norm())
            if length < 1e-12 * whole:  # zero but for rounding: a single token's queries and keys
                length = whole
            gap = float((sample[i].double() - gradients[name]).norm())
            assert gap <= tolerance * length, (i, name)


def assert_same_sum(
    total: Mapping[str, torch.Tensor],
    reference: Reference,
    clip_norm: float,
    tolerance: float,
) -> None:
    """The clipped sum of `RECORDS`, to `tolerance` of each tensor's norm and the finest grid's."""
    trained = list(total)
    clipped = reference.clipped(trained, clip_norm)
    for name in trained:
        expected = sum(one[name] for one in clipped)
        grid = clip_norm * 2.0**-50 * math.sqrt(len(clipped) * expected.numel())
        gap = (total[name].double() - expected).norm()
        assert gap <= tolerance * expected.norm() + grid, name


def pairwise(table: Mapping[str, Sequence[object]]) -> list[dict[str, object]]:
    """Rows such that every two values of different settings meet in at least one.

    Faults mostly come of one setting or of two together, and the whole product would take minutes:
    each row is the one that brings most pairs which have not met, the first of equals.
    """
    rows = [dict(zip(table, values, strict=True)) for values in itertools.product(*table.values())]
    left = set().union(*map(pairs_of, rows))
    chosen = []
    while left:
        best = max(rows, key=lambda row: len(pairs_of(row) & left))
        chosen.append(best)
        left -= pairs_of(best)
    return chosen


def pairs_of(row: Mapping[str, object]) -> set[object]:
    """The pairs of values that meet in a row."""
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
