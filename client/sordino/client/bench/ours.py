"""The product's engine: the step of `train_round`, and the same without privacy."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.client.batches import micro_batches
from sordino.client.bench.torch_memory import torch_peak
from sordino.client.bench.workload import Row, Stepper, Variant, Workload, make_rows
from sordino.client.lora import LoraAdapter
from sordino.client.model.scratch import drop_scratch
from sordino.client.model.store import BaseModel, open_base, resolve_model
from sordino.client.train import Tensors, backward, evaluate, train_round
from sordino.core.adapters import adapter_manifest, complete_adapter, trained_manifest
from sordino.core.config import ModelConfig, PerformanceConfig, TrainConfig
from sordino.core.records import AdapterManifest
from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import NoiseSource, system_source
from sordino.privacy.plan import Plan, RoundMechanism, open_round

ENDLESS = 1_000_000  # steps


class _EnoughError(Exception):
    """Ends a round that is only wanted up to some step."""


class StopSource:
    """The operating system's noise; every record is in each batch; ends the round at a step."""

    label = "the operating system's, with batches of every record: for measuring only"
    private = False

    def __init__(self, steps: int) -> None:
        self._noise: NoiseSource = system_source()
        self._left = steps

    def rounded_gaussian(self, size: int, scale: float) -> NDArray[np.int64]:
        """Real draws, of real cost."""
        return self._noise.rounded_gaussian(size, scale)

    def coins(self, size: int) -> NDArray[np.uint64]:
        """A new step begins: coins that all say yes."""
        self._begin()
        return np.zeros(size, np.uint64)

    def _begin(self) -> None:
        if self._left == 0:
            raise _EnoughError
        self._left -= 1


class GatedSource(StopSource):
    """Lets each step begin only when told: a training loop of the product, one step at a time."""

    def __init__(self) -> None:
        super().__init__(ENDLESS)
        self._may_begin = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self.error: BaseException | None = None

    def wait_for_step(self) -> None:
        """Wait for the loop to come to the beginning of its next step.

        Raises:
            RuntimeError: The loop ended with an error.
        """
        self._arrived.acquire()
        if self.error is not None:
            raise RuntimeError("the training loop ended") from self.error

    def let_through(self) -> None:
        """Let one step begin."""
        self._may_begin.release()

    def ended(self, error: BaseException) -> None:
        """The loop is over, and will not come to another step."""
        self.error = error
        self._arrived.release()

    def _begin(self) -> None:
        self._arrived.release()
        self._may_begin.acquire()
        super()._begin()


class Engine:
    """A warm base with the batch, ready to train."""

    def __init__(self, work: Workload, variant: Variant, cache: Path) -> None:
        self.work, self.variant = work, variant
        self.base: BaseModel = open_base(resolve_model(ModelConfig(name=work.model), cache))
        self.rows: list[Row] = make_rows(work, self.base.decoder.head.rows)
        self.lora = work.lora(variant.aggregation)
        self.train = TrainConfig(optimizer="adam", learning_rate=work.learning_rate)
        self.performance = PerformanceConfig(
            micro_batch=variant.micro_batch,
            checkpoint=variant.checkpoint,
            memory_mb=variant.memory_mb,
        )
        self._folder = tempfile.TemporaryDirectory(prefix="sordino-bench-")
        self._charges = 0

    @property
    def manifest(self) -> AdapterManifest:
        """The whole adapter's."""
        return adapter_manifest(self.base.files.config, self.lora)

    @property
    def trained(self) -> AdapterManifest:
        """Of what trains."""
        return trained_manifest(self.manifest, self.variant.aggregation, 1)

    @property
    def base_bytes(self) -> int:
        """Quantized matrices, and norms."""
        decoder = self.base.decoder
        held = sum(matrix.nbytes for matrix in decoder.matrices.values())
        return held + sum(vector.nbytes for vector in decoder.vectors.values())

    @property
    def state_bytes(self) -> int:
        """Adapter and Adam's two moments, float32."""
        trained = sum(spec.size for spec in self.trained.tensors)
        return 4 * (sum(spec.size for spec in self.manifest.tensors) + 2 * trained)

    @property
    def quantization(self) -> str:
        """The commonest block type of the file."""
        return self.base.files.quantization

    def adapter(self) -> Tensors:
        """The whole adapter as a client gets it: what isn't sent is made from the public seed."""
        return complete_adapter({}, self.manifest, self.lora.init_seed)

    def start_loss(self) -> float:
        """Of the base, since B = 0."""
        # As few at once as in the steps: what an evaluation takes would be the process' peak.
        sums = evaluate(
            self.base.decoder, None, self.rows, micro_batch=self.performance.micro_batch
        )
        return float(sums[:, 0].sum() / sums[:, 1].sum())

    def open_plan(self, source: NoiseSource) -> RoundMechanism:
        """A charged round of one plan, with steps without end."""
        self._charges += 1
        plan = self.plan(f"bench-{self._charges}")
        ledger = Ledger(Path(self._folder.name) / f"{self._charges}.db", "bench")
        return open_round(plan, ledger.charge(plan, 1, "bench"), source)

    def plan(self, run_id: str) -> Plan:
        """Of the workload's clip and noise."""
        return Plan(
            run_id=run_id,
            rounds=1,
            steps_per_round=ENDLESS,
            sampling_rate=0.5,
            noise_multiplier=self.work.noise_multiplier,
            clip_norm=self.work.clip_norm,
            divisor=float(self.work.batch),
            delta=1e-5,
        )

    def run(self, mechanism: RoundMechanism) -> None:
        """Train until the mechanism's source has enough."""
        with contextlib.suppress(_EnoughError):
            train_round(
                self.base.decoder,
                self.adapter(),
                self.trained.names,
                self.rows,
                mechanism,
                round_number=1,
                lora=self.lora,
                train=self.train,
                performance=self.performance,
            )

    def switch_seconds(self) -> float:
        """From another client's charge to where its first step begins: all that isn't the base."""
        source = StopSource(0)
        plan = self.plan(f"switch-{self._charges}")
        self._charges += 1
        ledger = Ledger(Path(self._folder.name) / f"switch-{self._charges}.db", "bench")
        charge = ledger.charge(plan, 1, "bench")
        start = time.perf_counter()
        self.run(open_round(plan, charge, source))
        return time.perf_counter() - start


class PrivateStep(Engine):
    """The product's own loop in a thread of its own, let through one step at a time.

    What is timed is thus everything from one batch's sampling to the next one's: per-record
    gradients, clip, grid, noise, optimizer, and the loop's own bookkeeping.
    """

    def __init__(self, work: Workload, variant: Variant, cache: Path) -> None:
        super().__init__(work, variant, cache)
        self._gate = GatedSource()
        mechanism = self.open_plan(self._gate)
        threading.Thread(target=self._loop, args=(mechanism,), daemon=True).start()
        self._gate.wait_for_step()

    def step(self) -> None:
        """One step."""
        self._gate.let_through()
        self._gate.wait_for_step()

    def torch_peak(self) -> int:
        """Of a round of one step in this thread, where the profiler looks."""
        mechanism = self.open_plan(StopSource(1))
        drop_scratch()  # so that the buffers count, too
        return torch_peak(lambda: self.run(mechanism))

    def _loop(self, mechanism: RoundMechanism) -> None:
        try:
            self.run(mechanism)
        except Exception as error:
            self._gate.ended(error)


class PlainStep(Engine):
    """The same loss, kernels and adapter with summed gradients and a plain optimizer."""

    def __init__(self, work: Workload, variant: Variant, cache: Path) -> None:
        super().__init__(work, variant, cache)
        self._adapter = LoraAdapter(
            self.adapter(), scale=self.lora.alpha / self.lora.rank, trained=self.trained.names
        )
        self._adapter.tape.per_record = False
        self._optimizer = torch.optim.Adam(
            list(self._adapter.parameters.values()), lr=work.learning_rate
        )

    def step(self) -> None:
        """One step."""
        for part in micro_batches(self.rows, self.performance.micro_batch):
            again = self.performance.checkpoint
            backward(self.base.decoder, self._adapter, part, recompute=again, reuse=True)
        for parameter in self._adapter.parameters.values():
            if parameter.grad is not None:
                parameter.grad.div_(len(self.rows))
        self._optimizer.step()
        self._optimizer.zero_grad()

    def torch_peak(self) -> int:
        """Of one more step."""
        drop_scratch()
        return torch_peak(self.step)


def private(work: Workload, variant: Variant, cache: Path) -> Stepper:
    """Open the engine with privacy."""
    return PrivateStep(work, variant, cache)


def plain(work: Workload, variant: Variant, cache: Path) -> Stepper:
    """Open the engine without privacy."""
    return PlainStep(work, variant, cache)
