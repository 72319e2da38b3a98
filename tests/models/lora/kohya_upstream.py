"""The modules that kohya-ss's sd-scripts adapts in SD-1.5 and SDXL, with the names that it gives them, derived from its
own code and from nothing of ours: `networks/lora.py` of kohya-ss/sd-scripts at commit
02298e3c4a7e18b20eb1638169d30da013747053 (every Linear and Conv2d below a Transformer2DModel, and with conv_dim below a
ResnetBlock2D, Downsample2D or Upsample2D: `lora_unet` and the path, joined by underscores), on diffusers' U-Net of
SD-1.5 and on `library/sdxl_original_unet.py` at commit 005013db95a600dba367d1fb4fa251c7cce60236.

`python tests/models/lora/kohya_upstream.py` writes the lists beside this file: name, input width, output width and
kernel (0: a Linear) of each module.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

Row = tuple[str, int, int, int]
FILES = {"sd15": "kohya_sd15.txt", "sdxl": "kohya_sdxl.txt"}
TIME = 1280  # of the time embedding, of both


def transformer(path: str, width: int, text: int, blocks: int, proj_kernel: int) -> Iterator[Row]:
    """The modules below a Transformer2DModel."""
    yield f"{path}.proj_in", width, width, proj_kernel
    for k in range(blocks):
        block = f"{path}.transformer_blocks.{k}"
        for attention, context in (("attn1", width), ("attn2", text)):
            yield f"{block}.{attention}.to_q", width, width, 0
            yield f"{block}.{attention}.to_k", context, width, 0
            yield f"{block}.{attention}.to_v", context, width, 0
            yield f"{block}.{attention}.to_out.0", width, width, 0
        yield f"{block}.ff.net.0.proj", width, 8 * width, 0
        yield f"{block}.ff.net.2", 4 * width, width, 0
    yield f"{path}.proj_out", width, width, proj_kernel


def resnet(path: str, names: tuple[str, str, str, str], into: int, out: int) -> Iterator[Row]:
    """The modules below a ResnetBlock2D."""
    first, time, second, shortcut = names
    yield f"{path}.{first}", into, out, 3
    yield f"{path}.{time}", TIME, out, 0
    yield f"{path}.{second}", out, out, 3
    if into != out:
        yield f"{path}.{shortcut}", into, out, 1


def sd15() -> Iterator[Row]:
    """The modules of diffusers' UNet2DConditionModel with SD-1.5's config."""
    names = ("conv1", "time_emb_proj", "conv2", "conv_shortcut")
    widths, skips, now = [320, 640, 1280, 1280], [320], 320
    for i, width in enumerate(widths):
        for j in range(2):
            yield from resnet(f"down_blocks.{i}.resnets.{j}", names, now, width)
            now = width
            skips.append(now)
            if i < 3:
                yield from transformer(f"down_blocks.{i}.attentions.{j}", width, 768, 1, 1)
        if i < 3:
            yield f"down_blocks.{i}.downsamplers.0.conv", width, width, 3
            skips.append(now)
    yield from resnet("mid_block.resnets.0", names, 1280, 1280)
    yield from transformer("mid_block.attentions.0", 1280, 768, 1, 1)
    yield from resnet("mid_block.resnets.1", names, 1280, 1280)
    for i, width in enumerate(reversed(widths)):
        for j in range(3):
            yield from resnet(f"up_blocks.{i}.resnets.{j}", names, now + skips.pop(), width)
            now = width
            if i > 0:
                yield from transformer(f"up_blocks.{i}.attentions.{j}", width, 768, 1, 1)
        if i < 3:
            yield f"up_blocks.{i}.upsamplers.0.conv", width, width, 3


def sdxl() -> Iterator[Row]:
    """The modules of sd-scripts' SdxlUNet2DConditionModel, in the order of its constructor."""
    names, c = ("in_layers.2", "emb_layers.1", "out_layers.3", "skip_connection"), 320
    yield from resnet("input_blocks.1.0", names, c, c)
    yield from resnet("input_blocks.2.0", names, c, c)
    yield "input_blocks.3.0.op", c, c, 3
    for block, into in ((4, c), (5, 2 * c)):
        yield from resnet(f"input_blocks.{block}.0", names, into, 2 * c)
        yield from transformer(f"input_blocks.{block}.1", 2 * c, 2048, 2, 0)
    yield "input_blocks.6.0.op", 2 * c, 2 * c, 3
    for block, into in ((7, 2 * c), (8, 4 * c)):
        yield from resnet(f"input_blocks.{block}.0", names, into, 4 * c)
        yield from transformer(f"input_blocks.{block}.1", 4 * c, 2048, 10, 0)
    yield from resnet("middle_block.0", names, 4 * c, 4 * c)
    yield from transformer("middle_block.1", 4 * c, 2048, 10, 0)
    yield from resnet("middle_block.2", names, 4 * c, 4 * c)
    for block, skip in ((0, 4 * c), (1, 4 * c), (2, 2 * c)):
        yield from resnet(f"output_blocks.{block}.0", names, 4 * c + skip, 4 * c)
        yield from transformer(f"output_blocks.{block}.1", 4 * c, 2048, 10, 0)
    yield "output_blocks.2.2.conv", 4 * c, 4 * c, 3
    for block, into in ((3, 6 * c), (4, 4 * c), (5, 3 * c)):
        yield from resnet(f"output_blocks.{block}.0", names, into, 2 * c)
        yield from transformer(f"output_blocks.{block}.1", 2 * c, 2048, 2, 0)
    yield "output_blocks.5.2.conv", 2 * c, 2 * c, 3
    for block, into in ((6, 3 * c), (7, 2 * c), (8, 2 * c)):
        yield from resnet(f"output_blocks.{block}.0", names, into, c)


def rows(model: str) -> list[Row]:
    """The modules of "sd15" or "sdxl", with the names of their LoRA."""
    found = {"sd15": sd15, "sdxl": sdxl}[model]()
    return [(f"lora_unet.{path}".replace(".", "_"), *sizes) for path, *sizes in found]  # type: ignore[misc]


def listed(model: str) -> list[Row]:
    """The same list as committed."""
    lines = Path(__file__).with_name(FILES[model]).read_text().splitlines()
    return [(name, *map(int, sizes)) for name, *sizes in map(str.split, lines)]  # type: ignore[misc]


def shapes(model: str, rank: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a LoRA file of this rank on all these modules."""
    found: dict[str, tuple[int, ...]] = {}
    for name, into, out, kernel in listed(model):
        found[f"{name}.lora_down.weight"] = (rank, into, kernel, kernel) if kernel else (rank, into)
        found[f"{name}.lora_up.weight"] = (out, rank, 1, 1) if kernel else (out, rank)
        found[f"{name}.alpha"] = ()
    return found


if __name__ == "__main__":
    for model, file in FILES.items():
        lines = [" ".join(map(str, row)) for row in rows(model)]
        Path(__file__).with_name(file).write_text("\n".join(lines) + "\n")
