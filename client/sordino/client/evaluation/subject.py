"""What is evaluated: one open base, with one adapter or without."""

from __future__ import annotations

from dataclasses import dataclass

from sordino.client.adapter_files import SavedAdapter
from sordino.client.data.tokens import TokenizerFile
from sordino.client.generate import GenerationModel, prepare
from sordino.client.lora import LoraAdapter
from sordino.client.model.decoder import Decoder
from sordino.core.errors import ModelError

BASE = "base"


@dataclass(frozen=True)
class Subject:
    """A base with an adapter, ready to be asked.

    Attributes:
        name: What the figures stand under; `BASE` without an adapter.
        decoder: The base.
        tokenizer: The base's.
        model: The same for generation and scoring.
        adapter: None: the bare base.
    """

    name: str
    decoder: Decoder
    tokenizer: TokenizerFile
    model: GenerationModel
    adapter: SavedAdapter | None = None

    def with_adapter(self, name: str, adapter: SavedAdapter) -> Subject:
        """The same base with an adapter; the packed base is shared.

        Raises:
            ModelError: The adapter isn't for this base.
        """
        try:
            model = self.model.with_adapter(adapter.tensors, scale=adapter.scale)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error
        return Subject(name, self.decoder, self.tokenizer, model, adapter)

    def lora(self) -> LoraAdapter | None:
        """The adapter over the decoder."""
        if self.adapter is None:
            return None
        return LoraAdapter(self.adapter.tensors, scale=self.adapter.scale)


def bare(decoder: Decoder, tokenizer: TokenizerFile) -> Subject:
    """The base without an adapter. Weights are exact: figures of two subjects are compared."""
    return Subject(BASE, decoder, tokenizer, prepare(decoder, weights="full"))
