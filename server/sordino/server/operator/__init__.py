"""What an operator, or a program of theirs, asks of a coordinator and tells it: `Operator`.

`service` is the listener, `client` the other end of it. Under central trust nothing here tells how
many were asked or answered: see `views`. docs/operators.md is the page for people.
"""

from typing import Final

SERVICE: Final = "sordino.v1.Operator"
ADDRESS: Final = "operator.address"
"""In the fleet's folder, while it serves: where, for commands on the same machine."""
