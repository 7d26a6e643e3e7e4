"""`audit.json`: every raw score, what each is a score of, and the figures that follow from them.

A figure is stored for whoever reads the file and recomputed by whoever checks it. Nothing is in it
that can't be computed again from what stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.metadata import version
from typing import Any, ClassVar, Final, Protocol

import numpy as np

from sordino.core import canonical, settings
from sordino.core.errors import AuditError, ConfigError, expected
from sordino.privacy.audit.commitments import Commitments, Opening
from sordino.privacy.audit.exposure import Exposure
from sordino.privacy.audit.extraction import Extraction, Identities
from sordino.privacy.audit.inversion import Inversion
from sordino.privacy.audit.membership import Membership
from sordino.privacy.audit.one_run import OneRun
from sordino.privacy.audit.prompts import PromptLeakage
from sordino.privacy.audit.worlds import Neighbours, Noise, TwoWorlds

VERSION: Final = 1
MOST_BYTES: Final = 1 << 28
_RELATIVE: Final = 1e-9  # another processor may sum in another order


class Measure(Protocol):
    """Raw scores, and what follows from them."""

    kind: ClassVar[str]

    def figures(self) -> dict[str, Any]:
        """Every figure, as plain JSON values; None where there is none."""
        ...


MEASURES: Final[Mapping[str, Any]] = {
    cls.kind: cls
    for cls in (
        OneRun,
        TwoWorlds,
        Noise,
        Neighbours,
        Membership,
        Exposure,
        Extraction,
        Identities,
        Inversion,
        PromptLeakage,
    )
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A measure of one model, with its figures.

    Attributes:
        label: Which run or model: "private", "not private".
        control: Empty for the audit itself; else what was done to know how the measure does:
            "swapped coins", "untrained adapter".
        measure: The raw scores.
        figures: What follows from them.
    """

    label: str
    measure: Measure
    figures: Mapping[str, Any] = field(repr=False)
    control: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.label, str) and isinstance(self.control, str)):
            raise AuditError(expected("label and control", (self.label, self.control), "texts"))
        if not isinstance(self.figures, Mapping):
            raise AuditError(expected("figures", type(self.figures).__name__, "an object"))


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All that an audit of one run found.

    Attributes:
        run_id: The run.
        entries: The measures.
        commitments: What was published before training; None if no canary was used.
        openings: The canaries and their nonces.
        contributions: The other side's randomness, one a canary.
        context: Seeds, versions, adapters' hashes, tier and cost: whatever else a reader must know,
            as plain JSON values. No figure follows from it.
    """

    run_id: str
    entries: tuple[Entry, ...]
    commitments: Commitments | None = None
    openings: tuple[Opening, ...] = ()
    contributions: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)


def measured(label: str, measure: Measure, control: str = "") -> Entry:
    """An entry of a measure and the figures that follow from it.

    Raises:
        AuditError: A value is of another type than its field.
    """
    try:  # numpy's numbers become Python's, and whole numbers floats where floats are meant
        own: Measure = settings.build(type(measure), _given(_plain(measure)), measure.kind)
    except ConfigError as error:
        raise AuditError(str(error)) from error
    return Entry(label=label, measure=own, figures=own.figures(), control=control)


def versions() -> dict[str, str]:
    """Of what computes figures, for an audit's context."""
    return {name: version(name) for name in ("sordino", "numpy", "scipy", "dp-accounting")}


def encode_audit(audit: Audit) -> bytes:
    """The audit as canonical JSON.

    Raises:
        AuditError: Something in it isn't JSON, or isn't finite.
    """
    try:
        return canonical.encode(_tree(audit))
    except ValueError as error:
        raise AuditError(f"the audit can't be written: {error}") from error


def decode_audit(data: bytes) -> Audit:
    """Read what `encode_audit` wrote, and nothing else. Its figures are as they were stored.

    Raises:
        AuditError: Other bytes, another version, a key too many or too few, an impossible value.
    """
    try:
        tree = canonical.decode(data, MOST_BYTES)
        kind, number = tree.pop("kind", None), tree.pop("version", None)
        if kind != "sordino.audit" or type(number) is not int or number != VERSION:
            required = f"sordino.audit, version {VERSION}"
            raise AuditError(expected("audit", (kind, number), f"to be {required}"))
        entries = tuple(map(_entry, tree.pop("entries")))
        context = dict(tree.pop("context"))
        head = settings.build(_Head, _given(tree))
    except (
        ValueError,
        ConfigError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise AuditError(f"the audit can't be read: {error}") from error
    audit = Audit(entries=entries, context=context, **vars(head))
    if encode_audit(audit) != data:
        raise AuditError("the audit's bytes are not those that its content is written as")
    return audit


def recompute(audit: Audit) -> Audit:
    """The same audit with every figure computed from its raw scores.

    Raises:
        AuditError: Scores so large or small that a figure is none.
    """
    entries = []
    for place, entry in enumerate(audit.entries):
        try:
            entries.append(replace(entry, figures=entry.measure.figures()))
        except (ArithmeticError, ValueError) as error:
            kind = entry.measure.kind
            raise AuditError(f"entry {place} ({kind}) has no figures: {error}") from error
    return replace(audit, entries=tuple(entries))


def mismatches(audit: Audit, recomputed: Audit) -> tuple[str, ...]:
    """Which figures don't come out as they are stored."""
    found = []
    for place, (entry, again) in enumerate(zip(audit.entries, recomputed.entries, strict=True)):
        where = f"entry {place} ({entry.label}, {entry.measure.kind})"
        found += [f"{where}: {what}" for what in _differences(again.figures, entry.figures)]
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class _Head:
    run_id: str
    commitments: Commitments | None = None
    openings: tuple[Opening, ...] = ()
    contributions: tuple[str, ...] = ()


def _tree(audit: Audit) -> dict[str, Any]:
    return {
        "kind": "sordino.audit",
        "version": VERSION,
        "run_id": audit.run_id,
        "context": dict(audit.context),
        "commitments": None if audit.commitments is None else asdict(audit.commitments),
        "openings": [asdict(opening) for opening in audit.openings],
        "contributions": list(audit.contributions),
        "entries": [
            {
                "label": entry.label,
                "control": entry.control,
                "measure": entry.measure.kind,
                "scores": _plain(entry.measure),
                "figures": dict(entry.figures),
            }
            for entry in audit.entries
        ],
    }


def _entry(table: Mapping[str, Any]) -> Entry:
    kind = table["measure"]
    if not isinstance(kind, str) or kind not in MEASURES:
        raise AuditError(expected("measure", kind, f"one of {', '.join(MEASURES)}"))
    return Entry(
        label=table["label"],
        control=table["control"],
        measure=settings.build(MEASURES[kind], _given(table["scores"]), kind),
        figures=table["figures"],
    )


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _given(value: Any) -> Any:
    """What isn't null: a field without a value takes its default, which is None."""
    if isinstance(value, Mapping):
        return {key: _given(inner) for key, inner in value.items() if inner is not None}
    return [_given(inner) for inner in value] if isinstance(value, list) else value


def _differences(now: Any, stored: Any, path: str = "") -> list[str]:
    if isinstance(now, Mapping) and isinstance(stored, Mapping) and set(now) == set(stored):
        return [d for key in now for d in _differences(now[key], stored[key], f"{path}.{key}")]
    if isinstance(now, list | tuple) and isinstance(stored, list) and len(now) == len(stored):
        pairs = enumerate(zip(now, stored, strict=True))
        return [d for i, (a, b) in pairs for d in _differences(a, b, f"{path}[{i}]")]
    if _number(now) and _number(stored):
        same = math.isclose(now, stored, rel_tol=_RELATIVE, abs_tol=1e-12)
    else:
        same = type(now) is type(stored) and now == stored
    return (
        [] if same else [f"{path.lstrip('.')} is {now!r} by the scores, and stored as {stored!r}"]
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
