"""`sordino adapter`: what a run has made, in the forms that others read."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(help="Show an adapter, and write it for llama.cpp.", no_args_is_help=True)

FOLDER = typer.Argument(help="An adapter's folder, for example RUN/adapter.")


@app.command()
def show(folder: Path = FOLDER) -> None:
    """Print what an adapter is."""
    from sordino.client.adapter_files import load_adapter

    saved = load_adapter(folder)
    values = sum(tensor.size for tensor in saved.tensors.values())
    typer.echo(f"base:    {saved.base_name or 'not named'}")
    typer.echo(f"rank:    {saved.rank}, alpha {saved.alpha:g}")
    typer.echo(f"targets: {', '.join(saved.targets)}")
    typer.echo(f"tensors: {len(saved.tensors)}, {values} values, {4 * values / 1e6:.1f} MB")


@app.command()
def gguf(
    folder: Path = FOLDER,
    out: Path = typer.Argument(help="The new file, for llama.cpp's --lora."),
    model: str = typer.Option("", help="The base; by default the one that the adapter names."),
) -> None:
    """Write an adapter as a GGUF LoRA for the base's own GGUF file."""
    from sordino.client.adapter_files import load_adapter
    from sordino.client.gguf_adapter import save_gguf_adapter
    from sordino.client.model.store import cache_root, resolve_model
    from sordino.core.config import ModelConfig

    saved = load_adapter(folder)
    base = resolve_model(ModelConfig(name=model or saved.base_name), cache_root())
    save_gguf_adapter(out, saved, base)
    typer.echo(f"{out}: for {base.weights.name}")
