"""Files of low-rank adapters of diffusers' transformers: in the layout of the family's pipeline, or in peft's if the
pipeline loads no LoRA.

In peft's layout (`PeftModel.from_pretrained(pipe.transformer, FOLDER)`) a name begins with `base_model.model.`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from urepa.core.errors import UserError
from urepa.models.backbones.backbone_sizes import LORA, PEFT
from urepa.models.weight_files import read_safetensors, save_tensors

ADAPTER = "default"  # peft's name of the only adapter
OF_PEFT = "base_model.model."
PREFIX = "transformer."


def write_transformer_lora(transformer: Any, folder: Path, loader: str | None) -> None:
    """Writes the adapters, with α and whether they are rank-stabilised or DoRA.

    Args:
        loader: the pipeline's base class in diffusers.loaders, whose `load_lora_weights` reads the file; None: peft's
            layout.
    """
    from peft.utils import get_peft_model_state_dict

    state, config = get_peft_model_state_dict(transformer), transformer.peft_config[ADAPTER]
    if loader is None:
        name, file = PEFT
        save_tensors({OF_PEFT + key: value for key, value in state.items()}, folder / file)
        config.save_pretrained(str(folder))
        assert (folder / name).is_file()
        return
    from diffusers import loaders

    getattr(loaders, loader).save_lora_weights(
        folder,
        transformer_lora_layers=state,
        transformer_lora_adapter_metadata=config.to_dict(),
        weight_name=LORA,
        safe_serialization=True,
    )


def load_transformer_lora(transformer: Any, file: Path, loader: str | None) -> None:
    """Loads a LoRA file into a transformer. Raises UserError if the file is not a LoRA, adapts more than the
    transformer, or does not fit it; diffusers would at most warn."""
    if loader is None:
        _load_of_peft(transformer, file)
    else:
        _load_of_pipeline(transformer, file, loader)


def _load_of_pipeline(transformer: Any, file: Path, loader: str) -> None:
    """Loads a file in one of the formats that the pipeline's loader reads."""
    from diffusers import loaders
    from safetensors import SafetensorError

    reader = getattr(loaders, loader)
    try:
        state, metadata = reader.lora_state_dict(str(file), use_safetensors=True, return_lora_metadata=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} does not load as a LoRA: {str(error).splitlines()[0]}") from error
    if not any("lora" in name for name in state):
        raise UserError(f"{file} holds no LoRA; give a pytorch_lora_weights.safetensors, or a transformer's folder")
    if any(name.startswith("text_encoder") for name in state):
        raise UserError(
            f"{file} adapts the text encoder too, and the track's texts were embedded without that; give a LoRA of the "
            "transformer alone"
        )
    if not any(name.startswith(PREFIX) for name in state):  # names as a transformer's own save method writes them
        state = {PREFIX + name: value for name, value in state.items()}
        metadata = None if metadata is None else {PREFIX + key: value for key, value in metadata.items()}
    alphas = {"network_alphas": None} if loader == "FluxLoraLoaderMixin" else {}
    own = {name.removeprefix(PREFIX): value for name, value in state.items()}
    try:
        reader.load_lora_into_transformer(state, transformer=transformer, metadata=metadata, **alphas)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{file} does not fit this transformer: {' '.join(str(error).split())[:200]}") from error
    _check_all_loaded(transformer, file, own)


def _load_of_peft(transformer: Any, file: Path) -> None:
    """Loads adapters in peft's layout. `file` is the file of adapters or the config beside it."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import set_peft_model_state_dict

    own = {}
    for name, value in read_safetensors(file.with_name(PEFT[1])).items():
        own[name.removeprefix(OF_PEFT)] = value
    if not (file.with_name(PEFT[0])).is_file():
        raise UserError(f"{file} has no {PEFT[0]} beside it, which says its rank and α; copy that too")
    config = LoraConfig.from_pretrained(str(file.parent))
    try:
        inject_adapter_in_model(config, transformer, ADAPTER)
        set_peft_model_state_dict(transformer, own, ADAPTER)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{file} does not fit this transformer: {' '.join(str(error).split())[:200]}") from error
    _check_all_loaded(transformer, file, own)


def _check_all_loaded(transformer: Any, file: Path, state: dict[str, Tensor]) -> None:
    from peft.utils import get_peft_model_state_dict

    (name,) = transformer.peft_config
    loaded = get_peft_model_state_dict(transformer, adapter_name=name)
    if len(loaded) != len(state):
        raise UserError(f"{file} does not fit this transformer: of its {len(state)} weights {len(loaded)} have a place")
