"""Which weights of the backbone train: all of them, or low-rank adapters beside frozen ones.

W' = W + (α/r)·B·A (Hu et al. 2022, eq. 3; spec 000 §2.3).
"""

from __future__ import annotations

from torch import nn

from urepa.errors import UserError

# Module names of diffusers' U-Nets, anchored at the top: a bare "to_q" would reach every block and put
# gradients into the frozen encoder.
BLOCKS = {"mid": r"mid_block\.", "all": r"(?:down_blocks|mid_block|up_blocks)\."}
TARGETS = {
    "attention": r".*\.(?:to_q|to_k|to_v|to_out\.0)",
    "attention_conv": r"(?:.*\.(?:to_q|to_k|to_v|to_out\.0)|(?:\d+\.)?resnets\.\d+\.conv[12])",
}


def no_lora(backbone: nn.Module) -> str:
    """The whole backbone trains. Returns the name of its optimiser group."""
    backbone.requires_grad_(True)
    return "backbone"


def add_lora(backbone: nn.Module, rank: int, alpha: int | None, dropout: float, targets: str, blocks: str) -> str:
    """Freezes the backbone and adds adapters through peft. Returns the name of their optimiser group.

    Args:
        rank: r, at least 1. alpha: α; None means r, so that ranks compare at scale 1.
        dropout: in [0,1). targets, blocks: keys of TARGETS and BLOCKS.

    On SD-1.5 at r = 8 with attention and mid: 155,648 parameters in 16 tensors; attention_conv adds the
    middle's four 3x3 convolutions, 409,600.
    """
    from peft import LoraConfig

    if rank < 1:
        raise UserError(f"lora.rank={rank}: give 1 or more; to train the whole backbone, lora=none")
    unet = getattr(backbone, "unet", None)
    if unet is None:
        raise UserError("lora: this backbone has no module to adapt; give lora=none")
    backbone.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=BLOCKS[blocks] + TARGETS[targets],
        bias="none",
    )
    unet.add_adapter(config)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # peft follows the base's dtype; adapters stay in fp32
    return "lora"
