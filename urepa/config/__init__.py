"""The schema of every config: a mistyped key, type or choice fails while composing, before torch loads.

One dataclass for each part; `conf/<group>/<option>.yaml` starts from one of them.
"""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from urepa.config import command_schemas, commands, part_schemas
from urepa.config.parts import KINDS, PACKAGES


def register() -> None:
    """Puts the schema where the YAML files' defaults lists find it: schema/KIND/NAME for kinds that have a package, and
    schema/NAME for the others."""
    store = ConfigStore.instance()
    for root, command in commands.COMMANDS.items():
        store.store(name=f"{root}_schema", node=command.schema)
    settings = {"trainer": part_schemas.Trainer, "device": command_schemas.Device, "study": command_schemas.Study}
    for name, node in settings.items():
        store.store(group="schema", name=name, node=node)
    for kind, nodes in KINDS.items():
        for name, node in nodes.items():
            store.store(group=f"schema/{kind}" if kind in PACKAGES else "schema", name=name, node=node)
