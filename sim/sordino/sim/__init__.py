"""Federations on one machine: populations, the local grid, and whole experiments."""
