"""One client's local steps: Poisson batch, per-record gradients, clip, noise, public divisor, step.

Everything that decides the guarantee comes from the plan's mechanism; Opacus' `DPOptimizer` drives
the order of things. What this module decides itself (optimizer, micro-batches, recomputation) is
post-processing of the noised sum, or only changes how the same sum is computed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.accountants import RDPAccountant
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.nn import Parameter

from sordino.client.batches import Example, Tokens, make_batch, micro_batches, token_count
from sordino.client.budget import StepSize, step_cost, step_size
from sordino.client.lora import LoraAdapter
from sordino.client.model.decoder import Decoder, frozen_linears
from sordino.client.model.loss import record_loss_sums, record_losses
from sordino.client.model.scratch import keeping
from sordino.client.views import with_views
from sordino.core.config import LoraConfig, PerformanceConfig, TrainConfig
from sordino.core.errors import ModelError
from sordino.core.schedule import learning_rate
from sordino.privacy.plan import NoPrivacyMechanism, Plan, RoundMechanism, UserMechanism

logger = logging.getLogger(__name__)

Tensors = dict[str, NDArray[np.float32]]
Mechanism = RoundMechanism | UserMechanism | NoPrivacyMechanism


@dataclass
class Observations:
    """What the device sees of its own training. Private: it never leaves the device.

    Attributes:
        batch_sizes: Records in each step's batch.
        clipped: Records whose gradient was longer than the clip norm.
        not_finite: Records whose gradient was NaN or infinite, and so counted as zero.
        signal_to_noise: For each step, the norm of the clipped sum over that of the noise.
        tokens: Tokens that went through the model.
        seconds: Wall time of the steps.
        opacus_steps: (noise multiplier, sampling rate, steps) as Opacus' own accountant counted
            them from the optimizer; empty without privacy.
        tokens_at_once: The most that went through the model together; 0: whole micro-batches.
        recompute: Layers were run again in the backward.
    """

    batch_sizes: list[int] = field(default_factory=list)
    clipped: int = 0
    not_finite: int = 0
    signal_to_noise: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    opacus_steps: list[tuple[float, float, int]] = field(default_factory=list)
    tokens_at_once: int = 0
    recompute: bool = False


class PlanOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with the plan's clip and noise in place of its own.

    Opacus multiplies a record's NaN gradient into the sum; here such a record contributes zero.
    Its noise is drawn a tensor at a time from torch's generator; here one draw of the plan's
    mechanism covers all tensors, so that a step is charged and drawn exactly once.

    With privacy, each record's clipped gradient is put on the plan's grid before it is summed:
    whole numbers of steps add up exactly in float64, in any order, and so one record moves the sum
    by what the plan accounts, however large the batch. A sum of floats has no such bound.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, mechanism: Mechanism, seen: Observations
    ) -> None:
        """Wrap an optimizer.

        Args:
            optimizer: Holds exactly the trained parameters.
            mechanism: The open round.
            seen: Where clip counts and signal-to-noise ratios are noted.
        """
        plan = mechanism.plan
        private = plan if isinstance(plan, Plan) else None
        super().__init__(
            optimizer,
            noise_multiplier=private.noise_multiplier if private else 0.0,
            max_grad_norm=private.clip_norm if private else math.inf,
            expected_batch_size=mechanism.divisor,
            loss_reduction="mean",
        )
        self._mechanism = mechanism
        self._seen = seen
        size = sum(p.numel() for p in self.params)
        self._grid_step = private.grid_step(size) if private else None
        self.accountant = RDPAccountant()
        if private:
            self.attach_step_hook(self.accountant.get_optimizer_hook_fn(private.sampling_rate))

    def clip_and_accumulate(self) -> None:
        """Add the micro-batch's clipped gradients to ``summed_grad``."""
        samples = self.grad_samples
        norms = record_norms(samples)
        factors = self._mechanism.clip_factors(norms.numpy())
        finite = torch.isfinite(norms)
        self._seen.not_finite += int((~finite).sum())
        self._seen.clipped += int(((factors < 1) & finite.numpy()).sum())
        weights = torch.from_numpy(np.asarray(factors))
        for parameter, sample in zip(self.params, samples, strict=True):
            if not bool(finite.all()):
                sample[~finite] = 0  # 0 × NaN is NaN: the record is replaced, not scaled
            total = self._sum(weights, sample)
            held = parameter.summed_grad
            parameter.summed_grad = total if held is None else held.add_(total)

    def add_noise(self) -> None:
        """Release the step's sum, all tensors at once, and cut it to them again."""
        sizes = [p.numel() for p in self.params]
        total = torch.cat([p.summed_grad.flatten() for p in self.params])
        for parameter in self.params:
            parameter.summed_grad = None  # two of them would be the most that a small step holds
        released = torch.from_numpy(self._mechanism.release(total.numpy()))
        self._note_signal(total, released)
        for parameter, part in zip(self.params, released.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def _sum(self, weights: Tensor, sample: Tensor) -> Tensor:
        if self._grid_step is None:
            return sample.mul_(_by_record(weights.to(sample.dtype), sample)).sum(0)
        return grid_sum(weights, sample, self._grid_step)

    def _note_signal(self, total: Tensor, released: Tensor) -> None:
        length = float(torch.linalg.vector_norm(released - total))
        if length > 0:
            signal = float(torch.linalg.vector_norm(total))
            self._seen.signal_to_noise.append(signal / length)


def grid_sum(weights: Tensor, sample: Tensor, step: float) -> Tensor:
    """Sum of each record's weighted gradient, each rounded to multiples of ``step``; exact.

    Args:
        weights: ``[records]``, the clip factors.
        sample: ``[records, ...]``; overwritten.
        step: The grid, a power of two.

    Returns:
        ``float64[...]``.
    """
    if sample.dtype not in (torch.float32, torch.float64):
        sample = sample.to(torch.float32)  # a half's rounding would lengthen the clipped gradient
    steps = (weights.to(torch.float64) / step).to(sample.dtype)  # of the same relative error
    sample.mul_(_by_record(steps, sample)).round_()
    return sample.sum(0, dtype=torch.float64).mul_(step)


def record_norms(samples: Sequence[Tensor]) -> Tensor:
    """L2 norm of each record's whole gradient, ``float64[records]``.

    Args:
        samples: One ``[records, ...]`` tensor a parameter.
    """
    squares = [
        torch.linalg.vector_norm(s, dim=tuple(range(1, s.dim())), dtype=torch.float64).square_()
        for s in samples
    ]
    return torch.stack(squares).sum(0).sqrt_()


def _by_record(values: Tensor, sample: Tensor) -> Tensor:
    """Shape one value a record so that it multiplies the whole record."""
    return values.view(-1, *[1] * (sample.dim() - 1))


def backward(
    decoder: Decoder,
    adapter: LoraAdapter,
    records: Sequence[Example],
    *,
    recompute: bool = False,
    reuse: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Run the records forward and back; leaves ``grad_sample`` in the adapter's parameters.

    Args:
        decoder: The frozen base.
        adapter: Its parameters.
        records: The micro-batch.
        recompute: Run each layer again in the backward.
        reuse: Take memory that the thread's next such call takes again: what is left in
            ``grad_sample`` is valid until then.
        dtype: Precision of the computation.

    Returns:
        The mean token loss of each record, averaged over its views, ``[records]``. Private.
    """
    batch = make_batch(records)
    adapter.tape.bounds = batch.bounds
    with keeping("batch") if reuse else nullcontext():
        hidden = decoder.hidden(
            batch.ids, batch.packing, linears=adapter.linears, recompute=recompute, dtype=dtype
        )
        losses = batch.record_means(
            record_losses(
                hidden[batch.rows], decoder.head, batch.targets, batch.owners, batch.sequences
            )
        )
        losses.sum().backward()
    return losses.detach()


def train_round(
    decoder: Decoder,
    tensors: Tensors,
    trained: Sequence[str],
    records: Sequence[Tokens],
    mechanism: Mechanism,
    *,
    round_number: int,
    lora: LoraConfig,
    train: TrainConfig,
    performance: PerformanceConfig,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensors, Observations]:
    """Run a round's local steps.

    The guarantee is that of the mechanism's plan: unit record, add or remove one, for the release
    of the update alone. The observations are outside it.

    Args:
        decoder: The frozen base.
        tensors: The whole adapter at the start of the round, by PEFT name.
        trained: Names of the tensors that train in this round.
        records: The client's training records.
        mechanism: The open round: sampler, clip, noise and divisor.
        round_number: Which round of the plan it is, from 1; the learning rate depends on it.
        lora: Rank, alpha and targets.
        train: The local optimizer, and how many views of a record it sees.
        performance: Micro-batches and recomputation.
        dtype: Precision of the computation.

    Returns:
        The change of each trained tensor, and what the device saw.

    Raises:
        ModelError: The update isn't finite: the learning rate is too large for this model.
    """
    adapter = LoraAdapter(tensors, scale=lora.alpha / lora.rank, trained=trained, dtype=dtype)
    seen = Observations()
    optimizer = PlanOptimizer(_inner(train, adapter.parameters), mechanism, seen)
    before = (round_number - 1) * mechanism.steps
    total = mechanism.plan.rounds * mechanism.steps
    size = _size(decoder, adapter, records, lora, train, performance)
    seen.tokens_at_once, seen.recompute = size.tokens, size.recompute
    start = time.perf_counter()
    for step in range(before, before + mechanism.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(train, step=step, total=total)
        batch = [records[i] for i in mechanism.sample(len(records))]
        chosen = with_views(batch, train, mechanism.words)
        seen.batch_sizes.append(len(chosen))
        seen.tokens += sum(token_count(record) for record in chosen)
        _step(decoder, adapter, optimizer, chosen, performance.micro_batch, size, dtype)
    seen.seconds = time.perf_counter() - start
    seen.opacus_steps = [tuple(entry) for entry in optimizer.accountant.history]
    update = {
        name: (p.detach().to(torch.float32).numpy() - tensors[name]).astype(np.float32)
        for name, p in adapter.parameters.items()
    }
    if not all(np.isfinite(delta).all() for delta in update.values()):
        raise ModelError(
            f"the update is not finite: lower train.learning_rate (it is {train.learning_rate})"
        )
    return update, seen


def evaluate(
    decoder: Decoder,
    adapter: LoraAdapter | None,
    records: Sequence[Tokens],
    *,
    micro_batch: int = 16,
) -> NDArray[np.float64]:
    """Sum of token losses and number of counted tokens of each record, ``[records, 2]``.

    Private: exact losses of a client's records never leave the device outside a simulation.
    """
    rows = np.empty((len(records), 2))
    order = sorted(range(len(records)), key=lambda i: len(records[i].ids))
    for at in range(0, len(order), micro_batch):
        chosen = order[at : at + micro_batch]
        batch = make_batch([records[i] for i in chosen])
        with torch.no_grad():
            chosen_linears = frozen_linears if adapter is None else adapter.linears
            hidden = decoder.hidden(batch.ids, batch.packing, linears=chosen_linears)
            sums = record_loss_sums(
                hidden[batch.rows], decoder.head, batch.targets, batch.owners, batch.records
            )
        rows[chosen, 0] = sums.numpy()
        rows[chosen, 1] = np.bincount(batch.owners.numpy(), minlength=batch.records)
    return rows


def _size(
    decoder: Decoder,
    adapter: LoraAdapter,
    records: Sequence[Tokens],
    lora: LoraConfig,
    train: TrainConfig,
    performance: PerformanceConfig,
) -> StepSize:
    trained = sum(p.numel() for p in adapter.parameters.values())
    cost = step_cost(decoder.architecture, lora.rank, trained)
    longest = train.views * max((len(record.ids) - 1 for record in records), default=1)
    size = step_size(cost, longest, performance)
    if performance.memory_mb:
        logger.log(logging.INFO if size.fits else logging.WARNING, "a step: %s", size)
    return size


def _step(
    decoder: Decoder,
    adapter: LoraAdapter,
    optimizer: PlanOptimizer,
    chosen: Sequence[Example],
    views: int,
    size: StepSize,
    dtype: torch.dtype,
) -> None:
    parts = micro_batches(chosen, views, size.tokens)
    for part in parts[:-1]:
        _gradients(decoder, adapter, optimizer, part, size, dtype)
        optimizer.signal_skip_step()
        optimizer.step()
    _gradients(decoder, adapter, optimizer, parts[-1] if parts else [], size, dtype)
    optimizer.step()
    optimizer.zero_grad()


def _gradients(
    decoder: Decoder,
    adapter: LoraAdapter,
    optimizer: PlanOptimizer,
    part: Sequence[Example],
    size: StepSize,
    dtype: torch.dtype,
) -> None:
    optimizer.zero_grad()
    if part:
        backward(decoder, adapter, part, recompute=size.recompute, reuse=True, dtype=dtype)
        return
    for parameter in adapter.parameters.values():  # an empty batch is a step: noise alone
        parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]


def _inner(train: TrainConfig, parameters: Mapping[str, Parameter]) -> torch.optim.Optimizer:
    values = list(parameters.values())
    if train.optimizer == "adam":
        return torch.optim.Adam(values, lr=train.learning_rate)
    return torch.optim.SGD(values, lr=train.learning_rate, momentum=train.momentum)
