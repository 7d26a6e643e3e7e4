"""Clipping, sampling, noise, accounting, the ledger, and the plan that couples them.

Knows neither flwr, grpc nor torch: an auditor's laptop can check a claim with this alone.
"""
