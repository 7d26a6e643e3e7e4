"""A finished sweep that nothing was run for: the example report with other figures."""

from dataclasses import replace
from pathlib import Path

from sordino.server.report import Leakage, from_json
from sordino.sim.baselines import without_privacy
from sordino.sim.scenarios import experiment
from sordino.sim.sweeps import Cell, Finished, SweepResult
from sordino.sim.sweeps.cells import Baseline

REPORT = Path(__file__).parent.parent / "data" / "report.json"


def swept(folder, ranks=(4, 8), epsilons=(1.0, 2.0, 4.0, 8.0), seeds=(0, 1, 2)):
    """Gains that grow with ε and differ a little by seed."""
    whole = from_json(REPORT.read_text("utf-8"))
    runs = []
    for rank in ranks:
        for epsilon in epsilons:
            for seed in seeds:
                point = {"privacy.epsilon": epsilon, "lora.rank": rank}
                config = experiment("demo", {**point, "seed": seed})
                runs.append(run(folder, whole, config, point))
    return SweepResult(folder=folder, runs=tuple(runs))


def run(folder, whole, config, point):
    gain = 0.1 + 0.02 * config.privacy.epsilon + 0.001 * config.lora.rank + 0.003 * config.seed
    private = whole.utility.private
    moved = replace(private, interval=replace(private.interval, estimate=gain, low=0.0, high=0.4))
    name = f"cell-{len(point)}-{config.privacy.epsilon}-{config.lora.rank}-{config.seed}"
    twin = without_privacy(config)
    return Finished(
        cell=Cell(
            name=name,
            settings=point,
            config=config,
            baseline=Baseline(name=f"baseline-{config.lora.rank}-{config.seed}", config=twin),
            events=(),
        ),
        folder=folder / "cells" / name,
        report=replace(
            whole,
            guarantee=replace(
                whole.guarantee,
                epsilon=replace(whole.guarantee.epsilon, pld=config.privacy.epsilon),
            ),
            noise=replace(whole.noise, noise_multiplier=1.0 + 4.0 / config.privacy.epsilon),
            utility=replace(whole.utility, private=moved),
            leakage=Leakage(),
        ),
        beside=whole,
        processor_s=3.0,
    )
