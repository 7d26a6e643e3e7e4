"""Rounds of stock Flower that only carry arrays."""
