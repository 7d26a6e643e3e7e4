"""The families of models: the linears of a decoder's block, their shapes and their names.

Data, without torch: a coordinator computes an adapter's manifest from a model's ``config.json``
alone. Names are those of the Hugging Face model, since PEFT's are made of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from sordino.core.errors import ConfigError, ModelError, expected

Role = Literal["q", "k", "v", "qkv", "o", "gate", "up", "down"]
ATTENTION_ROLES: frozenset[Role] = frozenset(("q", "k", "v", "qkv", "o"))
GROUPS = ("attention", "mlp")


@dataclass(frozen=True)
class BlockLinear:
    """One linear of a block.

    Attributes:
        module: Its place within the block, such as ``self_attn.q_proj``.
        rows: Which of `Sizes.widths` its output has.
        columns: Which of them its input has.
    """

    module: str
    rows: str
    columns: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the models of one design call their parts.

    Attributes:
        base: The decoder within the Hugging Face model, such as ``model``.
        layers: The list of blocks within the decoder, such as ``layers``.
        linears: Every linear of a block by what it does. PEFT can adapt each of them.
        transposed: The files hold the linears as [in, out], as GPT-2's Conv1D does.
        keys: What ``config.json`` calls each of `Sizes`, where it has a name for it.
        head_dim: Width of a head where the config names none; 0: width over heads.
        expansion: Width inside the MLP over that outside where the config names none; 0: it must.
    """

    base: str
    layers: str
    linears: Mapping[Role, BlockLinear]
    transposed: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    head_dim: int = 0
    expansion: int = 0

    @property
    def modules(self) -> list[str]:
        """Every linear's place within a block."""
        return [linear.module for linear in self.linears.values()]

    def path(self, layer: int, module: str) -> str:
        """A linear's name in the Hugging Face model."""
        return f"{self.base}.{self.layers}.{layer}.{module}"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that decide the shapes of a block's linears."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int

    @property
    def widths(self) -> dict[str, int]:
        """The widths that a linear's input or output can have."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return widths(self.hidden, query, key, self.inner)


def widths(hidden: int, query: int, key: int, inner: int) -> dict[str, int]:
    """Name the widths that a linear's input or output can have, as `BlockLinear` does."""
    joined = query + 2 * key
    return {"hidden": hidden, "query": query, "key": key, "joined": joined, "inner": inner}


LLAMA = Family(
    base="model",
    layers="layers",
    linears={
        "q": BlockLinear("self_attn.q_proj", "query", "hidden"),
        "k": BlockLinear("self_attn.k_proj", "key", "hidden"),
        "v": BlockLinear("self_attn.v_proj", "key", "hidden"),
        "o": BlockLinear("self_attn.o_proj", "hidden", "query"),
        "gate": BlockLinear("mlp.gate_proj", "inner", "hidden"),
        "up": BlockLinear("mlp.up_proj", "inner", "hidden"),
        "down": BlockLinear("mlp.down_proj", "hidden", "inner"),
    },
    keys={
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "inner": "intermediate_size",
    },
)
GPT2 = Family(
    base="transformer",
    layers="h",
    linears={
        "qkv": BlockLinear("attn.c_attn", "joined", "hidden"),
        "o": BlockLinear("attn.c_proj", "hidden", "query"),
        "up": BlockLinear("mlp.c_fc", "inner", "hidden"),
        "down": BlockLinear("mlp.c_proj", "hidden", "inner"),
    },
    transposed=True,
    keys={"layers": "n_layer", "hidden": "n_embd", "heads": "n_head", "inner": "n_inner"},
    expansion=4,
)
GPT_NEOX = Family(
    base="gpt_neox",
    layers="layers",
    linears={
        "qkv": BlockLinear("attention.query_key_value", "joined", "hidden"),
        "o": BlockLinear("attention.dense", "hidden", "query"),
        "up": BlockLinear("mlp.dense_h_to_4h", "inner", "hidden"),
        "down": BlockLinear("mlp.dense_4h_to_h", "hidden", "inner"),
    },
    keys={
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "inner": "intermediate_size",
    },
)
FAMILIES: Mapping[str, Family] = {
    "llama": LLAMA,
    "mobilellm": LLAMA,
    "qwen2": LLAMA,
    "qwen3": replace(LLAMA, head_dim=128),
    "gemma3_text": replace(LLAMA, head_dim=256),
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
}


def family_of(config: Mapping[str, object]) -> Family:
    """The family of a model, from its ``config.json``; one that names no type is a llama.

    Raises:
        ModelError: The model type isn't supported; names it and what is.
    """
    kind = config.get("model_type", "llama")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ModelError(
            f"model type {kind!r} is not supported: supported types are {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def sizes_of(config: Mapping[str, object]) -> Sizes:
    """The sizes of a model's blocks, from its ``config.json``.

    Raises:
        ModelError: The model type isn't supported, or a size isn't a positive whole number.
    """
    family = family_of(config)

    def size(name: str, default: int | None = None) -> int:
        key = family.keys.get(name)
        return _whole(config, key, default) if key else _known(default, name)

    hidden, heads = size("hidden"), size("heads")
    return Sizes(
        layers=size("layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=size("kv_heads", heads),
        head_dim=size("head_dim", family.head_dim or hidden // heads),
        inner=size("inner", family.expansion * hidden or None),
    )


def linear_shapes(config: Mapping[str, object]) -> dict[str, tuple[int, int]]:
    """Shape (out, in) of each linear of one block, by its place there.

    Args:
        config: The model's ``config.json``.

    Raises:
        ModelError: The model type isn't supported, or a size isn't a positive whole number.
    """
    widths = sizes_of(config).widths
    linears = family_of(config).linears.values()
    return {linear.module: (widths[linear.rows], widths[linear.columns]) for linear in linears}


def targeted(family: Family, targets: Iterable[str]) -> list[str]:
    """The linears of a block that `targets` name, in the block's order.

    A target is the end of a linear's path, as in PEFT (GPT-2's ``c_proj`` names two,
    ``attn.c_proj`` one), or one of the groups ``attention`` and ``mlp``.

    >>> targeted(GPT2, ["attention"])
    ['attn.c_attn', 'attn.c_proj']
    >>> targeted(GPT2, ["c_proj"])
    ['attn.c_proj', 'mlp.c_proj']

    Raises:
        ConfigError: A target names none.
    """
    chosen: set[str] = set()
    for target in targets:
        found = {module for module in family.modules if names(family, target, module)}
        if not found:
            ends_of = dict.fromkeys(m.rpartition(".")[2] for m in family.modules)
            known = f"one of {', '.join([*ends_of, *GROUPS])}"
            raise ConfigError(expected("lora.targets", target, known))
        chosen |= found
    return [module for module in family.modules if module in chosen]


def meant(family: Family, targets: Iterable[str]) -> tuple[str, ...]:
    """The linears of a block that any of `targets` names; what names none is passed over.

    >>> meant(GPT2, ["q_proj", "mlp"])
    ('mlp.c_fc', 'mlp.c_proj')
    """
    words = tuple(targets)
    return tuple(m for m in family.modules if any(names(family, word, m) for word in words))


def names(family: Family, target: str, module: str) -> bool:
    """Whether a target means this linear of a block.

    >>> names(GPT2, "mlp", "mlp.c_proj"), names(GPT2, "attn.c_proj", "mlp.c_proj")
    (True, False)
    """
    if target not in GROUPS:
        return _ends(module, target)
    role = next(role for role, linear in family.linears.items() if linear.module == module)
    return (role in ATTENTION_ROLES) == (target == "attention")


def target_modules(family: Family, modules: Iterable[str]) -> list[str]:
    """PEFT's ``target_modules`` for linears of a block: as short as they can be.

    >>> target_modules(GPT2, ["attn.c_attn", "attn.c_proj"])
    ['attn.c_proj', 'c_attn']
    """
    adapted = set(modules)
    names = set()
    for module in adapted:
        last = module.rpartition(".")[2]
        same = {m for m in family.modules if _ends(m, last)}
        names.add(last if same <= adapted else module)
    return sorted(names)


def _ends(module: str, target: str) -> bool:
    """Whether `target` is the end of a module's path, by whole parts."""
    return module == target or module.endswith(f".{target}")


def _known(value: int | None, name: str) -> int:
    if value is None:
        raise ModelError(f"the model's config.json has no {name}")
    return value


def _whole(config: Mapping[str, object], key: str, default: int | None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(expected(f"{key} in the model's config.json", value, "a whole number > 0"))
    return value
