"""The daemon of a device: enrols, pulls tasks, answers them, and outlasts crashes and networks.

`loop` is the agent, `tasks` one task from its pull to its end, `bridge` the only module that knows
Flower. docs/device.md says how to set one up, docs/contract.md what is said on the wire.

`sordino.core.trust.require_tls13` must have been called before anything here is imported.
"""
