"""A coordinator's own page for people, its figures for Prometheus, and whether it is alive.

Static HTML without a script or an external reference, served over plain HTTP on the loopback
address; who wants it elsewhere puts a proxy in front that knows its readers. What is told is what
an operator is told, and under central trust as little: `sordino.server.operator.views`.
docs/operators.md has the figures' names and meaning.
"""

from sordino.server.status.server import StatusServer, StatusSettings

__all__ = ["StatusServer", "StatusSettings"]
