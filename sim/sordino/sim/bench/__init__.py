"""Variants of a training step side by side: processes that take turns, paired ratios, memory."""
