"""How long a step's noise takes, beside numpy's Gaussian, which is neither exact nor private.

    python bench/noise.py [--size 2442240] [--repeats 15] [--step-seconds 6.0]

One core. The candidates take turns, so that a machine that slows down slows all of them; figures
are medians with the fastest and slowest run.
"""

import argparse
import statistics
import time

import numpy as np

from sordino.privacy.noise import grid_step, noise_scale, release_on_grid, rounded_sensitivity
from sordino.privacy.noise.sources import system_source
from sordino.privacy.noise.table import table

PARAMETERS = 2_442_240  # SmolLM2-135M, rank 8 on all seven linears


def candidates(size, noise_multiplier):
    """What is timed: each a function without arguments."""
    step = grid_step(1.0, size)
    moved = rounded_sensitivity(1.0, step, size)
    scale = noise_scale(noise_multiplier, moved, step)
    source, generator = system_source(), np.random.Generator(np.random.PCG64DXSM())
    total = generator.normal(0, 1e-3, size)
    return {
        "rounded Gaussian, exact": lambda: source.rounded_gaussian(size, scale),
        "whole release": lambda: release_on_grid(total, step=step, scale=scale, source=source),
        "ChaCha20 bits alone": lambda: source.coins(size),
        "numpy normal, PCG64": lambda: generator.normal(0, scale, size),
    }


def main():
    """Print a line a candidate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=PARAMETERS)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--noise-multiplier", type=float, default=0.8)
    parser.add_argument("--step-seconds", type=float, default=6.0, help="a step of training")
    given = parser.parse_args()
    start = time.perf_counter()
    table()
    print(f"table, once a process: {time.perf_counter() - start:.3f} s")
    timed = candidates(given.size, given.noise_multiplier)
    seconds = {name: [] for name in timed}
    for _ in range(given.repeats + 1):
        for name, run in timed.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        took = values[1:]  # the first run pays for memory
        middle = statistics.median(took)
        print(
            f"{name:26} {middle * 1e3:7.1f} ms  ({min(took) * 1e3:.1f} to {max(took) * 1e3:.1f})"
            f"  {middle / given.size * 1e9:5.1f} ns a draw"
            f"  {middle / given.step_seconds:6.2%} of a step"
        )


if __name__ == "__main__":
    main()
