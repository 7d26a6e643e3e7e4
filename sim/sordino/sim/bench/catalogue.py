"""The variants that can be measured, by name, and which ratios matter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sordino.client.bench.workload import Variant
from sordino.core.errors import ConfigError, expected

PLAIN = "sordino.client.bench.ours:plain"
PRIVATE = "sordino.client.bench.ours:private"
_BASELINES = "sordino.client.bench.baselines"

MAIN = (
    Variant(name="peft", make=f"{_BASELINES}:peft", about="PEFT, fp32, no privacy (P)"),
    Variant(name="hooks", make=f"{_BASELINES}:hooks", about="PEFT with Opacus hooks (H)"),
    Variant(name="ghost", make=f"{_BASELINES}:ghost", about="PEFT with Opacus ghost clipping (G)"),
    Variant(name="plain", make=PLAIN, about="our engine, no privacy (O)"),
    Variant(name="private", make=PRIVATE, about="our engine, private (S)"),
)
FFA = (
    Variant(name="plain-ffa", make=PLAIN, aggregation="ffa", about="O, only B trained"),
    Variant(name="private-ffa", make=PRIVATE, aggregation="ffa", about="S, only B trained"),
)


def _setting(micro_batch: int, *, checkpoint: bool = False) -> Variant:
    return Variant(
        name=f"m{micro_batch}{'-ckpt' if checkpoint else ''}",
        make=PRIVATE,
        micro_batch=micro_batch,
        checkpoint=checkpoint,
        about=f"S, {micro_batch} at once{', recomputed' if checkpoint else ''}",
    )


def _budget(megabytes: int) -> Variant:
    return Variant(
        name=f"{megabytes}mb",
        make=PRIVATE,
        memory_mb=megabytes,
        about=f"S, what fits {megabytes} MB",
    )


SETTINGS = (
    *(_setting(micro_batch) for micro_batch in (8, 4, 3, 2, 1)),
    _setting(1, checkpoint=True),
    _budget(320),
    _budget(180),
)
# Whether a difference is the allocator's: freed tensors of a megabyte go back at once.
ALLOCATOR = (
    Variant(name="peft-mmap", make=f"{_BASELINES}:peft", allocator="mmap", about="P, mmap"),
    Variant(name="private-mmap", make=PRIVATE, allocator="mmap", about="S, mmap"),
    Variant(name="m2-mmap", make=PRIVATE, allocator="mmap", micro_batch=2, about="m2, mmap"),
)
GROUPS = {"main": MAIN, "ffa": FFA, "settings": SETTINGS, "allocator": ALLOCATOR}
_KNOWN = {variant.name: variant for group in GROUPS.values() for variant in group}


@dataclass(frozen=True)
class Target:
    """A ratio of two variants' times that is printed, and the most that it should be, if any."""

    of: str
    to: str
    limit: float | None = None


TARGETS = (
    Target("private", "plain", 1.05),
    Target("private", "peft", 0.85),
    Target("private", "hooks", 0.80),
    Target("private", "ghost", 0.60),
    Target("plain", "peft"),
    Target("hooks", "peft"),
    Target("ghost", "peft"),
    Target("private-ffa", "plain-ffa", 1.05),
    Target("private-ffa", "peft"),
    Target("private-ffa", "private"),
    Target("320mb", "m8", 1.05),
    Target("180mb", "m8", 1.35),
    *(Target(f"m{n}", "m8") for n in (4, 3, 2, 1)),
    Target("m1-ckpt", "m8"),
    Target("private-mmap", "private"),
    Target("m2-mmap", "m2"),
    Target("peft-mmap", "peft"),
)


def choose(names: Iterable[str]) -> tuple[Variant, ...]:
    """The variants of some names and groups, each once, in their order.

    Raises:
        ConfigError: A name is neither a variant nor a group.
    """
    chosen: dict[str, Variant] = {}
    for name in names:
        if name not in _KNOWN and name not in GROUPS:
            known = ", ".join([*GROUPS, *_KNOWN])
            raise ConfigError(expected("variant", name, f"to be one of {known}"))
        for variant in GROUPS.get(name) or (_KNOWN[name],):
            chosen[variant.name] = variant
    return tuple(chosen.values())
