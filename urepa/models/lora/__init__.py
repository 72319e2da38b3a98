"""Which weights of the backbone train: a file declares a choice (`urepa.core.backbone_protocols.LoRA`); `lora_net` adds
adapters."""
