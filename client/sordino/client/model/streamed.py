"""Write a safetensors file tensor by tensor, so that they never are in memory together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import IO

import torch
from torch import Tensor

DTYPES = {torch.float32: ("F32", 4), torch.int8: ("I8", 1), torch.uint8: ("U8", 1)}
_ALIGNMENT = 64

Shape = tuple[int, ...]


class StreamedSafetensors:
    """A safetensors file whose tensors are known in advance and come in any order.

    The bytes depend on the tensors alone: wide types lie first, so that all are aligned, then by
    name.
    """

    def __init__(self, file: IO[bytes], layout: Mapping[str, tuple[torch.dtype, Shape]]) -> None:
        """Write the header.

        Args:
            file: Open for writing, at its start.
            layout: Type and shape of every tensor.
        """
        self._file = file
        self._layout = dict(layout)
        self._offsets: dict[str, int] = {}
        header, at = {}, 0
        for name in sorted(layout, key=lambda n: (-DTYPES[layout[n][0]][1], n)):
            dtype, shape = layout[name]
            label, width = DTYPES[dtype]
            self._offsets[name] = at
            stop = at + width * math.prod(shape)
            header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [at, stop]}
            at = stop
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % _ALIGNMENT)
        file.write(len(text).to_bytes(8, "little") + text)
        self._start = file.tell()
        self._missing = set(layout)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor.

        Raises:
            ValueError: It isn't in the layout, or isn't what the layout says.
        """
        if self._layout.get(name) != (tensor.dtype, tuple(tensor.shape)):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not as laid out")
        self._file.seek(self._start + self._offsets[name])
        self._file.write(tensor.contiguous().numpy().data)
        self._missing.discard(name)

    def finish(self) -> None:
        """Check that every tensor was written.

        Raises:
            ValueError: One was not.
        """
        if self._missing:
            raise ValueError(f"{min(self._missing)} was never written")
