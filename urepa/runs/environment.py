"""What the environment may say of a run: where it lies, never how it is trained.

accelerate takes settings from variables, some of them over what its caller gives
(`ACCELERATE_GRADIENT_ACCUMULATION_STEPS` divides every gradient), and `accelerate launch` sets them from a file in the
user's home. A run is what its config says, so they are taken out.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from urepa.core.ranks import is_first

# of accelerate 1.15: its Accelerator, states and plugins read these, and transformers a few of them
PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
# the device and its cores, which are the launcher's to give, and what is shown of messages and tracebacks
PLACE = ("ACCELERATE_USE_CPU", "ACCELERATE_CPU_AFFINITY", "ACCELERATE_LOG_LEVEL", "ACCELERATE_ENABLE_RICH")
# values that `accelerate launch` sets where it was asked for nothing
NEUTRAL = ("", "0", "no", "false", "none", "off", "default")


def remove_accelerate_variables(environment: MutableMapping[str, str] = os.environ) -> None:
    """Removes accelerate's environment variables for the rest of the process, as some are read again at every backward
    pass and when a teacher is loaded. Rank 0 prints one line that names those that would have had an effect."""
    found = {name: environment[name] for name in sorted(environment) if name.startswith(PREFIXES) and name not in PLACE}
    for name in found:
        del environment[name]
    asked = [f"{name}={value}" for name, value in found.items() if value.lower() not in NEUTRAL]
    if asked and is_first():
        print(
            f"ignored in the environment: {', '.join(asked)}; the config alone says how a run is trained "
            "(trainer.accumulation, trainer.precision, trainer.compile)",
            flush=True,
        )
