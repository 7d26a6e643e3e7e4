"""`device.toml`: what a device's owner decides about the agent."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sordino.client.session import NodeSettings
from sordino.core.errors import ConfigError, expected
from sordino.core.settings import build, to_table
from sordino.privacy.policy import Work

CONFIG: Final = "device.toml"
STATE: Final = "state"


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """How the agent behaves. Nothing here changes what the policy allows.

    Attributes:
        display_name: A name for people, sent at enrolment; empty: the coordinator makes one.
        storage_mb: What fetched files may take, MB (10⁶ bytes).
        fetch_base: Whether a base that isn't installed is fetched from the coordinator, if the
            policy allows it; otherwise its tasks are declined.
        send_calibration: Whether the figures of a synthetic batch are sent: speed, memory, energy.
            Those of real tasks never are.
    """

    display_name: str = ""
    storage_mb: int = 2000
    fetch_base: bool = False
    send_calibration: bool = False

    def __post_init__(self) -> None:
        if self.storage_mb < 1:
            raise ConfigError(expected("agent.storage_mb", self.storage_mb, ">= 1"))


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """The whole file.

    Attributes:
        node: Model, data, policy, memory: what every grid's client is told.
        agent: What only an agent has.
        work: When to ask for work at all; the owner's signed policy may ask for more.
    """

    node: NodeSettings = field(default_factory=NodeSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    work: Work = field(default_factory=Work)

    def __post_init__(self) -> None:
        node = self.node
        if not node.user:
            todo = "name the user of node.data whose device this is"
            raise ConfigError(expected("node.user", node.user, "not empty", todo))
        if node.noise_seed >= 0 and not node.allow_no_privacy:
            todo = "seeded noise is known to whoever knows the seed: leave it out"
            required = "< 0 unless node.allow_no_privacy is true"
            raise ConfigError(expected("node.noise_seed", node.noise_seed, required, todo))

    def in_folder(self, folder: Path) -> DeviceSettings:
        """The same with the client's own folder inside the agent's, unless it was named."""
        state = self.node.state_dir or str(folder / STATE)
        return replace(self, node=replace(self.node, state_dir=state))

    def node_config(self, **changes: str) -> dict[str, Any]:
        """The node configuration for the ClientApp."""
        return to_table(replace(self.node, **changes))  # type: ignore[arg-type]


def load_settings(path: Path) -> DeviceSettings:
    """Read `device.toml`.

    Raises:
        ConfigError: It can't be read, isn't TOML, or holds something unknown or impossible.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        todo = "write one, with node.user at least (docs/device.md), or name it with --config"
        raise ConfigError(f"can't read {path}: {error.strerror}: {todo}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return build(DeviceSettings, table)
