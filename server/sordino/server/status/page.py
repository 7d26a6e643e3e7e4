"""The page for people: HTML from a snapshot, without a script or an external reference."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from sordino.server.operator.tables import Table
from sordino.server.report import formats
from sordino.server.report.standing import against
from sordino.server.status.snapshot import MOST_ROUNDS, RunStatus, Snapshot
from sordino.server.status.spent import Group

REFRESH_S: Final = 30
"""The page asks for itself again this often, which needs no script."""


def render(now: Snapshot) -> str:
    """The page."""
    template, css = _parts()
    return template.render(now=now, view=View(now), n=formats, css=css, refresh_s=REFRESH_S)


def content_policy() -> str:
    """What a browser may do with the page: show it in its own style, and nothing else."""
    _, css = _parts()
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


@lru_cache(maxsize=1)
def _parts() -> tuple[Template, str]:
    """The template, and the style: a report's, and what a status adds to it."""
    environment = Environment(
        loader=PackageLoader("sordino.server.status"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared, _, _ = PackageLoader("sordino.server.report").get_source(environment, "report.css")
    own, _, _ = PackageLoader("sordino.server.status").get_source(environment, "status.css")
    return environment.get_template("status.html.j2"), f"\n{shared}{own}"


@dataclass(frozen=True)
class View:
    """What the template says in words, worked out from the snapshot."""

    now: Snapshot

    @property
    def rounds_shown(self) -> int:
        """How many rounds of a run are shown at most."""
        return MOST_ROUNDS

    def moment(self, unix_ms: int | None) -> str:
        """A moment in UTC; a dash where there is none."""
        if not unix_ms:
            return formats.UNKNOWN
        return f"{datetime.fromtimestamp(unix_ms // 1000, UTC):%F %T}"

    def took(self, one: Table) -> str:
        """How long a round took, or has taken until now."""
        ends = one["closed_at_unix_ms"] or self.now.at_ms
        return formats.duration(max(0, ends - one["opened_at_unix_ms"]) / 1000)

    def dropped(self, one: Table) -> str:
        """Who fell out of a round, by reason."""
        if one["dropped"] is None:
            return formats.UNKNOWN
        return ", ".join(f"{count} {reason}" for reason, count in one["dropped"].items()) or "0"

    def rounds(self, group: Group) -> str:
        """How many rounds the devices of a group answered."""
        if group.fewest == group.most:
            return formats.count(group.most)
        return f"{formats.count(group.fewest)} to {formats.count(group.most)}"

    def whose(self, group: Group) -> str:
        """Whom a group's ε is about."""
        return "every user" if group.devices is None else formats.count(group.devices)

    def claim(self, status: RunStatus) -> str:
        """What the figures of a run's groups mean, beside their ε."""
        one = status.groups[-1].guarantee
        return (
            f"Upper bounds at δ = {formats.power(one.delta)}, neighbouring datasets by "
            f"{one.neighbouring}, sampling {one.sampling}, accountant {one.accountant}, "
            f"composition over the rounds of this run that are named and no other, trust model "
            f"{one.trust} ({against(one.trust)})."
        )

    def whole(self, one: Table) -> str:
        """One unit's bound of all announced rounds, with everything that it means."""
        epsilon = one["epsilon"]
        bound = formats.NOT_BOUNDED if epsilon is None else f"ε ≤ {formats.epsilon(epsilon)}"
        return (
            f"Unit {one['unit']}: {bound} at δ = {formats.power(one['delta'])}, neighbouring "
            f"datasets by {one['neighbouring']}, sampling {one['sampling']}, accountant "
            f"{one['accountant']}, over {one['scope']}, trust model {one['trust']}."
        )

    def state(self, run: Table) -> str:
        """How a run stands, and why where it failed."""
        return f"{run['state']}: {run['reason']}" if run["reason"] else str(run["state"])
