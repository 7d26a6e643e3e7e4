"""`sordino chat`: see what a run has made of its base."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

if TYPE_CHECKING:
    from sordino.client.adapter_files import SavedAdapter
    from sordino.client.chat import Engine
    from sordino.client.data.tokens import TokenizerFile
    from sordino.client.model.store import ModelFiles

Which = Literal["own", "llama.cpp"]


def chat(
    adapter: Path | None = typer.Option(
        None, help="An adapter's folder, for example RUN/adapter; without it the bare base speaks."
    ),
    model: str = typer.Option("", help="The base; by default the one that the adapter names."),
    system: str = typer.Option("", help="A system prompt."),
    engine: Which = typer.Option("own", help="What computes."),
    max_tokens: int = typer.Option(256, min=1, help="Of an answer."),
    temperature: float = typer.Option(0.0, min=0.0, help="0: always the likeliest token."),
    seed: int | None = typer.Option(None, help="Of the sampling, to get the same answers again."),
) -> None:
    """Talk to a base with an adapter, on this machine: a message a line, Ctrl-D ends."""
    from sordino.client.chat import Chat, converse
    from sordino.client.data.tokens import TokenizerFile

    saved = _adapter(adapter)
    files = _base(model or (saved.base_name if saved else ""))
    tokenizer = TokenizerFile.load(files.tokenizer)
    with ExitStack() as stack:
        if engine == "own":
            writer = _own(files, saved, tokenizer, temperature, seed)
        else:
            writer = _llama_cpp(stack, files, saved, temperature, seed)
        talk = Chat(writer, tokenizer, system=system, most=max_tokens)
        converse(talk, _lines(), _show)


def _adapter(folder: Path | None) -> SavedAdapter | None:
    from sordino.client.adapter_files import load_adapter

    return None if folder is None else load_adapter(folder)


def _base(name: str) -> ModelFiles:
    from sordino.client.model.store import cache_root, resolve_model
    from sordino.core.config import ModelConfig
    from sordino.core.errors import ConfigError, expected

    if not name:
        raise ConfigError(expected("--model", name, "a base's name, file or folder"))
    return resolve_model(ModelConfig(name=name), cache_root())


def _own(
    files: ModelFiles,
    saved: SavedAdapter | None,
    tokenizer: TokenizerFile,
    temperature: float,
    seed: int | None,
) -> Engine:
    from sordino.client.chat import OwnEngine
    from sordino.client.generate import Sampling, prepare
    from sordino.client.model.store import open_base

    prepared = prepare(open_base(files).decoder)
    if saved is not None:
        prepared = prepared.with_adapter(saved.tensors, scale=saved.scale)
    return OwnEngine(prepared, tokenizer, Sampling(temperature=temperature), seed)


def _llama_cpp(
    stack: ExitStack,
    files: ModelFiles,
    saved: SavedAdapter | None,
    temperature: float,
    seed: int | None,
) -> Engine:
    import tempfile

    from sordino.client.gguf_adapter import save_gguf_adapter
    from sordino.client.llama_cpp import LlamaCpp

    lora = None
    if saved is not None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sordino-chat-"))
        lora = Path(folder) / "adapter.gguf"
        save_gguf_adapter(lora, saved, files)
    return LlamaCpp(files.weights, lora, temperature=temperature, seed=seed)


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401  (editing of lines)

    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def _show(words: str) -> None:
    sys.stdout.write(words)
    sys.stdout.flush()
