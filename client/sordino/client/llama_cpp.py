"""llama.cpp as the engine of a chat: the base's GGUF file as it lies, and the adapter beside it.

Optional: the extra ``llama`` (the package ``xllamacpp``). It quantizes activations to 8 bits on the
way, so its logits are not those of our engine: docs/chat.md says by how much.
"""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sordino.core.errors import ModelError, expected

_GREEDY = {"temperature": 0.0}


class LlamaCpp:
    """An engine (`sordino.client.chat.Engine`)."""

    def __init__(
        self,
        weights: Path,
        adapter: Path | None = None,
        *,
        context: int = 2048,
        threads: int = 1,
        temperature: float = 0.0,
        seed: int | None = None,
        exact: bool = False,
    ) -> None:
        """Open a base.

        Args:
            weights: The base's GGUF file.
            adapter: From `save_gguf_adapter`.
            context: Tokens of prompt and answer together.
            threads: For arithmetic.
            temperature: 0: greedy.
            seed: Of the sampling; None: the library's own.
            exact: Keep keys and values in float32, for comparisons.

        Raises:
            ModelError: The package isn't installed, or it can't open the files.
        """
        library = _library()
        params = library.CommonParams()
        params.model.path = str(weights)
        params.n_ctx, params.warmup, params.verbosity = context, False, -1
        params.cpuparams.n_threads = threads
        if exact:
            params.cache_type_k = params.cache_type_v = library.ggml_type.GGML_TYPE_F32
            disabled = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.flash_attn_type = disabled
        if adapter is not None:
            params.lora_adapters = [library.CommonAdapterLoraInfo(str(adapter), 1.0)]
        try:
            self._server = library.Server(params)
        except RuntimeError as error:
            raise ModelError(f"llama.cpp can't open {weights}: {error}") from error
        self._sampling = {"temperature": temperature} | ({} if seed is None else {"seed": seed})

    def write(self, ids: Sequence[int], most: int) -> Iterator[str]:
        """Go on from `ids`."""
        pieces: queue.SimpleQueue[Any] = queue.SimpleQueue()
        request = {
            "prompt": list(ids), "n_predict": most, "stream": True, "n_probs": 1, **self._sampling,
        }  # fmt: skip

        def run() -> None:
            try:
                self._server.handle_completions(request, pieces.put)
                pieces.put(None)
            except Exception as error:
                pieces.put(error)

        threading.Thread(target=run, daemon=True).start()
        while (piece := pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise ModelError(f"llama.cpp stopped: {piece}") from piece
            yield _words(piece)

    def log_probs(self, ids: Sequence[int], count: int) -> dict[int, float]:
        """Log-probabilities of the likeliest next tokens.

        Raises:
            ModelError: The likeliest token is half a letter: of those the library says nothing.
        """
        answer = self._server.handle_completions(
            {"prompt": list(ids), "n_predict": 1, "n_probs": count, "ignore_eos": True, **_GREEDY}
        )
        found = answer["choices"][0]["logprobs"]
        if not found:
            raise ModelError("llama.cpp says nothing of this token: ask after another prompt")
        return {top["id"]: top["logprob"] for top in found["content"][0]["top_logprobs"]}


def _words(piece: Any) -> str:
    if "error" in piece:
        raise ModelError(expected("llama.cpp", piece["error"].get("message"), "to answer"))
    return "".join(choice["text"] for choice in piece.get("choices", []))


def _library() -> Any:
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        raise ModelError("llama.cpp isn't installed: pip install 'sordino[llama]'") from error
