"""What a training step costs beside PEFT's and Opacus': `sordino bench step` as a script."""

from sordino.cli.bench import step

if __name__ == "__main__":
    import typer

    typer.run(step)
