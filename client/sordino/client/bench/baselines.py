"""What a user would pick instead: PEFT on the fp32 model, and Opacus on top of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from sordino.client.bench.torch_memory import torch_peak
from sordino.client.bench.workload import Stepper, Variant, Workload, make_rows
from sordino.client.model.store import ModelFiles, resolve_model
from sordino.core.config import ModelConfig
from sordino.core.durable import locked
from sordino.core.errors import ConfigError, expected

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class PeftStep:
    """PEFT's LoRA on transformers' fp32 model; a way to train it is handed in."""

    quantization = "fp32"

    def __init__(self, work: Workload, variant: Variant, cache: Path) -> None:
        if variant.aggregation != "fedit" or variant.checkpoint:
            raise ConfigError(
                expected("variant", variant.name, "to train A and B without checkpointing")
            )
        disable_progress_bar()  # type: ignore[no-untyped-call]
        files = resolve_model(ModelConfig(name=work.model), cache)
        model = AutoModelForCausalLM.from_pretrained(dequantized(files, cache), dtype=torch.float32)
        self.base_bytes = sum(p.nbytes for p in model.parameters())
        rows = make_rows(work, model.config.vocab_size)
        self.ids = torch.stack([torch.from_numpy(row.ids).long() for row in rows])
        lora = LoraConfig(
            r=work.rank, lora_alpha=work.alpha, lora_dropout=0.0, target_modules=LINEARS
        )
        self.model: Any = get_peft_model(model, lora).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.state_bytes = 3 * sum(p.nbytes for p in self.trained)
        self.optimizer: Any = torch.optim.Adam(self.trained, lr=work.learning_rate)

    def loss(self) -> Tensor:
        """The model's own mean loss per token."""
        loss: Tensor = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        return loss

    def start_loss(self) -> float:
        """Of the base, since B = 0."""
        with torch.no_grad():
            return self.loss().item()

    def step(self) -> None:
        """One step."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def torch_peak(self) -> int:
        """Of one more step."""
        return torch_peak(self.step)


class HooksStep(PeftStep):
    """Opacus' per-sample gradients by hooks on each trained linear."""

    def __init__(self, work: Workload, variant: Variant, cache: Path) -> None:
        super().__init__(work, variant, cache)
        self.model = GradSampleModule(self.model, batch_first=True, loss_reduction="mean")
        self.optimizer = DPOptimizer(
            self.optimizer,
            noise_multiplier=work.noise_multiplier,
            max_grad_norm=work.clip_norm,
            expected_batch_size=work.batch,
            loss_reduction="mean",
        )


class GhostStep(PeftStep):
    """Opacus' ghost clipping: norms without gradients, then a second backward."""

    def __init__(self, work: Workload, variant: Variant, cache: Path) -> None:
        super().__init__(work, variant, cache)
        self.model = GradSampleModuleFastGradientClipping(
            self.model,
            batch_first=True,
            loss_reduction="mean",
            max_grad_norm=work.clip_norm,
            use_ghost_clipping=True,
        )
        self.optimizer = DPOptimizerFastGradientClipping(
            self.optimizer,
            noise_multiplier=work.noise_multiplier,
            max_grad_norm=work.clip_norm,
            expected_batch_size=work.batch,
            loss_reduction="mean",
        )
        self._criterion: Callable[..., Any] = DPLossFastGradientClipping(
            self.model, self.optimizer, torch.nn.CrossEntropyLoss(), "mean"
        )

    def step(self) -> None:
        """One step, with the loss per record that ghost clipping needs."""
        logits = self.model(input_ids=self.ids, use_cache=False).logits[:, :-1]
        targets = self.ids[:, 1:].reshape(-1)
        flat = logits.reshape(-1, logits.shape[-1])
        self._criterion(flat, targets, shape=logits.shape).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def peft(work: Workload, variant: Variant, cache: Path) -> Stepper:
    """Open PEFT without privacy."""
    return PeftStep(work, variant, cache)


def hooks(work: Workload, variant: Variant, cache: Path) -> Stepper:
    """Open PEFT with Opacus' hooks."""
    return HooksStep(work, variant, cache)


def ghost(work: Workload, variant: Variant, cache: Path) -> Stepper:
    """Open PEFT with Opacus' ghost clipping."""
    return GhostStep(work, variant, cache)


def dequantized(files: ModelFiles, cache: Path) -> Path:
    """The fp32 Hugging Face folder of a GGUF file, as transformers reads it; made once.

    Args:
        files: Of a model that is a GGUF file.
        cache: Where the folder is kept.

    Raises:
        ConfigError: The model is a Hugging Face folder.
    """
    if files.kind != "gguf":
        raise ConfigError(expected("model", files.name, "to be a GGUF file"))
    folder = cache / "derived" / f"{files.sha256[:16]}-fp32"
    with locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _dequantize(files, folder)
    return folder


def _dequantize(files: ModelFiles, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        files.weights.parent, gguf_file=files.weights.name, dtype=torch.float32
    )
    # save_pretrained raises on what was loaded from GGUF; and a tied head is stored once.
    weights = {
        name: value.contiguous()
        for name, value in model.state_dict().items()
        if not (name == "lm_head.weight" and model.config.tie_word_embeddings)
    }
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        whole = Path(made) / "whole"
        whole.mkdir()
        save_file(weights, whole / "model.safetensors", {"format": "pt"})
        shutil.copy(files.tokenizer / "config.json", whole)
        whole.rename(folder)
