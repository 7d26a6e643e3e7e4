"""Functions that a test's workers call."""

import logging
import os


def double(data: bytes) -> bytes:
    return data + data


def refuse(data: bytes) -> bytes:
    raise ValueError("no")


def environment(names: bytes) -> bytes:
    return " ".join(os.environ[name] for name in names.decode().split()).encode()


def flower_level(_: bytes) -> bytes:
    return logging.getLevelName(logging.getLogger("flwr").level).encode()
