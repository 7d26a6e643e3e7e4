"""Which tensors an architecture needs, and whether a file brought them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sordino.client.model.architecture import Architecture
from sordino.client.model.matrices import Matrix
from sordino.core.errors import ModelError
from sordino.core.families import Role

HEAD = "lm_head"


def linear_name(arch: Architecture, layer: int, role: Role) -> str:
    """A linear's name in the decoder, such as ``layers.0.mlp.up_proj``."""
    return f"{arch.family.layers}.{layer}.{arch.family.linears[role].module}"


def block_matrices(arch: Architecture) -> dict[str, tuple[int, int]]:
    """``[rows, columns]`` of the linears of all blocks."""
    linears = arch.family.linears
    return {
        linear_name(arch, i, role): (arch.widths[linear.rows], arch.widths[linear.columns])
        for i in range(arch.layers)
        for role, linear in linears.items()
    }


def matrix_shapes(arch: Architecture) -> dict[str, tuple[int, int]]:
    """``[rows, columns]`` of every matrix that the architecture needs."""
    shapes = block_matrices(arch)
    shapes[arch.parts.embedding] = (arch.vocabulary, arch.hidden)
    if arch.parts.positions:
        shapes[arch.parts.positions] = (arch.positions, arch.hidden)
    if not arch.tied:
        shapes[HEAD] = (arch.vocabulary, arch.hidden)
    return shapes


def gain_sizes(arch: Architecture) -> dict[str, int]:
    """The length of every norm's gain, by the norm's name."""
    sizes = {}
    for i in range(arch.layers):
        for role, name in arch.parts.norms.items():
            of_heads = role in ("query", "key")
            sizes[f"{arch.family.layers}.{i}.{name}"] = arch.head_dim if of_heads else arch.hidden
    return {**sizes, arch.parts.last_norm: arch.hidden}


def bias_sizes(arch: Architecture) -> dict[str, int]:
    """The length of every bias, by its name, which ends in ``.bias``."""
    sizes = {
        f"{linear_name(arch, i, role)}.bias": arch.widths[linear.rows]
        for i in range(arch.layers)
        for role, linear in arch.family.linears.items()
        if role in arch.parts.biases
    }
    if arch.parts.norm == "layer":
        sizes |= {f"{name}.bias": size for name, size in gain_sizes(arch).items()}
    return sizes


def vector_sizes(arch: Architecture) -> dict[str, int]:
    """The length of every vector that the architecture needs: gains and biases."""
    return {**gain_sizes(arch), **bias_sizes(arch)}


def check_complete(
    arch: Architecture, matrices: Mapping[str, Matrix], vectors: Mapping[str, Tensor]
) -> None:
    """Compare what a file held with what the architecture needs.

    Raises:
        ModelError: Names the first missing, surplus or wrongly shaped tensor.
    """
    shapes = matrix_shapes(arch)
    sizes = vector_sizes(arch)
    found = {name: (m.rows, m.columns) for name, m in matrices.items()}
    found_vectors = {name: tuple(v.shape) for name, v in vectors.items()}
    _compare(shapes, found)
    _compare({name: (size,) for name, size in sizes.items()}, found_vectors)
    surplus = sorted((set(matrices) - set(shapes) - {HEAD}) | (set(vectors) - set(sizes)))
    if surplus:
        raise ModelError(f"the model file has a tensor {surplus[0]} that its config doesn't name")


def _compare(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"the model file has no tensor for {name}: is it complete?")
        if found[name] != shape:
            raise ModelError(f"tensor {name} has shape {found[name]}, config.json says {shape}")
