"""The schemas of all configs. A mistyped key, type or choice fails during composition, before torch is loaded.

Each part has a dataclass, from which its `conf/<group>/<option>.yaml` starts.
"""

from __future__ import annotations

from functools import cache

from hydra.core.config_store import ConfigStore

from urepa.config import command_schemas, commands, part_schemas
from urepa.config.parts import KINDS, PACKAGES


@cache
def register() -> None:
    """Stores the schemas where the defaults lists of YAML files refer to them: schema/KIND/NAME for kinds that have a
    package, and schema/NAME for the others. Repeated calls have no further effect."""
    store = ConfigStore.instance()
    for root, command in commands.COMMANDS.items():
        store.store(name=f"{root}_schema", node=command.schema)
    settings = {"trainer": part_schemas.Trainer, "device": command_schemas.Device, "study": command_schemas.Study}
    for name, node in settings.items():
        store.store(group="schema", name=name, node=node)
    for kind, nodes in KINDS.items():
        for name, node in nodes.items():
            store.store(group=f"schema/{kind}" if kind in PACKAGES else "schema", name=name, node=node)
