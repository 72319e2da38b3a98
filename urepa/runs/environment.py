"""The influence of environment variables on a run: they may set file locations, but not how the run is trained.

accelerate reads settings from variables, some of which override its caller's arguments
(`ACCELERATE_GRADIENT_ACCUMULATION_STEPS` divides every gradient), and `accelerate launch` sets them from a file in the
user's home. Training must depend only on the config, so these variables are removed.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from urepa.core.ranks import is_first

# read by Accelerator, states and plugins of accelerate 1.15, and a few by transformers
PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
# device and cores, which the launcher sets, and the display of messages and tracebacks
PLACE = ("ACCELERATE_USE_CPU", "ACCELERATE_CPU_AFFINITY", "ACCELERATE_LOG_LEVEL", "ACCELERATE_ENABLE_RICH")
# values that `accelerate launch` sets by default
NEUTRAL = ("", "0", "no", "false", "none", "off", "default")


def remove_accelerate_variables(environment: MutableMapping[str, str] = os.environ) -> None:
    """Removes accelerate's environment variables for the rest of the process, because some are read again at every
    backward pass and when a teacher is loaded. Rank 0 prints one line with those that would have had an effect."""
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
