"""What an operator, or a program of theirs, asks of a coordinator and tells it: `Operator`.

`service` is the listener, `client` the other end of it. Under central trust nothing here tells how
many were asked or answered: see `views`. docs/operators.md is the page for people.
"""
