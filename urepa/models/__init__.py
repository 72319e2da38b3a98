"""Networks: backbones, heads, teachers, LoRA, layers, memory and kernels."""
