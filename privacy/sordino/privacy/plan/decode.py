"""The one way from bytes to a plan, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeAlias

from sordino.core import canonical
from sordino.core.errors import PlanError, expected
from sordino.privacy.plan.central import CentralPlan
from sordino.privacy.plan.fields import VERSION
from sordino.privacy.plan.metrics import MetricPlan
from sordino.privacy.plan.plans import AdaptiveClip, NoPrivacyPlan, Plan

AnyPlan: TypeAlias = Plan | CentralPlan | NoPrivacyPlan
"""A plan that can be trained under."""

_KINDS: Mapping[str, Any] = {cls.kind: cls for cls in (Plan, CentralPlan, NoPrivacyPlan)}


def decode_plan(data: bytes) -> AnyPlan:
    """Read a plan, accepting exactly the bytes that `canonical()` writes.

    Raises:
        PlanError: Other bytes, a key too many or too few, another version, an impossible value.
    """
    plan: AnyPlan = _decode(data, _KINDS)
    return plan


def decode_metric_plan(data: bytes) -> MetricPlan:
    """Read the plan of a paid metric, as strictly.

    Raises:
        PlanError: As `decode_plan`.
    """
    plan: MetricPlan = _decode(data, {MetricPlan.kind: MetricPlan})
    return plan


def decode_charged_plan(data: bytes) -> Plan | CentralPlan | MetricPlan:
    """Read a plan that a ledger charges, of training or of a metric, as strictly.

    Raises:
        PlanError: As `decode_plan`, or a plan without privacy, which spends nothing.
    """
    kinds = {cls.kind: cls for cls in (Plan, CentralPlan, MetricPlan, NoPrivacyPlan)}
    plan: Plan | CentralPlan | MetricPlan | NoPrivacyPlan = _decode(data, kinds)
    if isinstance(plan, NoPrivacyPlan):
        raise PlanError("a plan without privacy spends nothing, and no policy is about it")
    return plan


def _decode(data: bytes, kinds: Mapping[str, Any]) -> Any:
    try:
        values = canonical.decode(data)
    except ValueError as error:
        raise PlanError(f"the plan's bytes can't be read: {error}") from error
    kind, version = values.pop("kind", None), values.pop("version", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise PlanError(expected("plan kind", kind, f"one of {', '.join(kinds)}"))
    if type(version) is not int or version != VERSION:
        raise PlanError(expected("plan version", version, f"to be {VERSION}"))
    plan = _build(kinds[kind], values, "the plan")
    if plan.canonical() != data:  # for example 1 where 1.0 is meant
        raise PlanError("the plan's bytes are not in the canonical encoding")
    return plan


def _build(cls: Any, values: dict[str, Any], what: str) -> Any:
    known = {field.name for field in fields(cls)}
    optional = {field.name for field in fields(cls) if field.default is None}
    odd = sorted(known.symmetric_difference(values) - optional.difference(values))
    if odd:
        raise PlanError(f"{what} has missing or unknown keys: {', '.join(odd)}")
    if isinstance(values.get("adaptive"), dict):
        values["adaptive"] = _build(AdaptiveClip, values["adaptive"], "the plan's adaptive clip")
    return cls(**values)
