"""An adapter's parameters, applied over any decoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from sordino.client.model.elementwise import Elementwise
from sordino.client.model.linears import Site, Tape, linears
from sordino.client.model.matrices import Matrix
from sordino.core.adapters import base_of, tensor_names


class LoraAdapter:
    """An adapter as parameters, applied over any decoder.

    Attributes:
        tape: Set by the training loop before each backward.
        parameters: The trained ones, by PEFT name.
    """

    def __init__(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        *,
        scale: float,
        trained: Iterable[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Copy an adapter's tensors.

        Args:
            tensors: Every tensor of the adapter, by PEFT name.
            scale: ``alpha / rank``.
            trained: Names of those that train; none for evaluation.
            dtype: Precision of the parameters; the base computes in the same.
        """
        self.tape = Tape()
        chosen = set(trained)
        self._base = base_of(tensors)
        self._scale = scale
        self._all = {
            name: Parameter(torch.from_numpy(np.array(value)).to(dtype), name in chosen)
            for name, value in tensors.items()
        }
        self._sites: dict[str, Site | None] = {}
        self.parameters = {n: p for n, p in self._all.items() if p.requires_grad}

    def linears(
        self,
        names: Sequence[str],
        matrices: Sequence[Matrix],
        before: Elementwise,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        """Apply linears, adapted where the adapter has their tensors: a decoder's `Linears`."""
        return linears(before, inputs, matrices, [self._site(name) for name in names])

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Copy the current values out, by PEFT name."""
        return {name: p.detach().to(torch.float32).numpy().copy() for name, p in self._all.items()}

    def _site(self, name: str) -> Site | None:
        if name not in self._sites:
            name_a, name_b = tensor_names(f"{self._base}.{name}")
            self._sites[name] = (
                Site(self._all[name_a], self._all[name_b], self._scale, self.tape)
                if name_a in self._all
                else None
            )
        return self._sites[name]
