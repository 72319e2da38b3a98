"""What declarations and networks of diffusers' transformers refuse, in one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers_tiny import CASES, FAMILY, backbone_of, declared_of, texts, write_tiny

from urepa.core.conditions import Condition, Part
from urepa.core.errors import UserError
from urepa.core.part_names import LAYERS, POOLED, TEXT

every = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("transformers")
    return {case: write_tiny(root / case, case) for case in ("sd3", "sd35", "pixart", "lumina2", "hidream")}


def resized(values: Any, width: int) -> Tensor:
    """Values [...,D] with another last dimension."""
    repeated: Tensor = torch.cat([values, values], dim=-1)[..., :width]
    return repeated


def noise(case: str, count: int) -> Tensor:
    return torch.randn(count, *CASES[case].latent, generator=torch.Generator().manual_seed(7))


def test_weights_of_another_model_are_refused(folders: dict[str, Path]) -> None:
    known: dict[str, Any] = {"latent_shape": CASES["sd3"].latent, "num_classes": 0, "widths": CASES["sd3"].widths}
    with pytest.raises(UserError, match=r"holds a PixArtTransformer2DModel, not a SD3Transformer2DModel"):
        declared_of("sd3", str(folders["pixart"])).build(**known)
    with pytest.raises(UserError, match=r"has num_layers=3 in its config.json, and backbone.num_layers=4 here; give "):
        declared_of("sd3", str(folders["sd3"]), num_layers=4).build(**known)
    with pytest.raises(
        UserError, match=r"dual_attention_layers=\[0,1\] in its .*give backbone.dual_attention_layers=\[0,1\]"
    ):
        declared_of("sd3", str(folders["sd35"]), qk_norm="rms_norm").build_without_weights(**known)
    with pytest.raises(UserError, match="takes text of width 32; data.text_encoder gives 31"):
        declared_of("sd3", str(folders["sd3"])).build(**known | {"widths": {TEXT: 31, POOLED: 24}})
    with pytest.raises(UserError, match="takes 16 latent channels; the track has 4"):
        declared_of("sd3", str(folders["sd3"])).build(**known | {"latent_shape": (4, 8, 8)})


def test_text_of_another_width_is_refused_by_the_config_of_a_folder(folders: dict[str, Path]) -> None:
    """Before caches are looked for. A folder may be the pipeline's or the transformer's own; a hub id is not asked, and
    random weights take any width."""
    for place in (folders["hidream"], folders["hidream"] / "transformer"):
        declared = declared_of("hidream", str(place))
        declared.check_widths(CASES["hidream"].widths)
        for part in (TEXT, LAYERS, POOLED):
            what = "text" if part == TEXT else f"{part}, a part of the condition,"
            with pytest.raises(UserError, match=f"takes {what} of width {CASES['hidream'].widths[part]}; .*gives 7: "):
                declared.check_widths(CASES["hidream"].widths | {part: 7})
    for weights in ("random", "OWNER/NAME"):
        declared_of("hidream", weights).check_widths({TEXT: 7, LAYERS: 7, POOLED: 7})
    with pytest.raises(UserError, match=r"holds a PixArtTransformer2DModel, not a SD3Transformer2DModel"):
        declared_of("sd3", str(folders["pixart"])).check_widths({TEXT: 7, POOLED: 7})


@every
def test_random_weights_take_the_datas_channels_and_widths(case: str) -> None:
    declared = declared_of(case, "random")
    declared.published = CASES[case].fixed
    widths = {part: 2 * width for part, width in CASES[case].widths.items()} | {POOLED: 12}
    if "joint_attention_dim" in declared.variant():
        declared.joint_attention_dim = widths[TEXT]  # a setting
    shape = (3 * CASES[case].latent[0] // 2, *CASES[case].latent[1:])
    known: dict[str, Any] = {"latent_shape": shape, "num_classes": 0, "widths": widths}
    with torch.device("meta"):
        alike = declared.build_without_weights(**known)
    backbone = declared.build(**known).eval()
    assert {n: p.shape for n, p in alike.named_parameters()} == {n: p.shape for n, p in backbone.named_parameters()}
    text = texts(case, 4)
    other = {
        name: replace(part, value=resized(part.value, widths[name]), null=resized(part.null, widths[name]))
        for name, part in text.parts.items()
    }
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(7))
    objective = CASES[case].objective
    t_B = objective.times_of([objective.time_at(0.5)])  # type: ignore[arg-type]
    with torch.no_grad():
        assert backbone(x, t_B, Condition(other)).prediction_RCHW.shape == x.shape


@every
def test_sizes_that_do_not_fit_are_refused(case: str) -> None:
    declared, (channels, height, width) = declared_of(case), CASES[case].latent
    declared.check((channels, height, width))
    if declared.patch > 1:
        with pytest.raises(UserError, match="whose sides are multiples of 16 pixels"):
            declared.check((channels, height, width + 1))
    own = [height // declared.patch, width // declared.patch]
    declared.check_grids(CASES[case].latent, {"teacher.grid": own})
    with pytest.raises(UserError, match=r"image tokens and the teacher 7x7 tokens"):
        declared.check_grids(CASES[case].latent, {"teacher.grid": [7, 7]})
    with pytest.raises(UserError, match="^lora.targets=attention_conv"):
        declared.check_adapters("attention_conv", "all")


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(UserError, match=r"^x0 has 17 tokens a side, .*backbone.pos_embed_max_size=16; "):
        declared_of("sd3").check((16, 8, 34))


def test_positions_of_a_square_are_as_many_as_said() -> None:
    with pytest.raises(UserError, match=r"^backbone.pos_embed_max_size=15 is no square, .* give 9 or 16"):
        declared_of("auraflow", pos_embed_max_size=15).check((4, 2, 2))
    with pytest.raises(UserError, match=r"^x0 has 9 tokens a side, .* positions for 8 .*pos_embed_max_size=64"):
        declared_of("auraflow").check((4, 8, 18))


def test_more_rows_or_columns_than_positions_are_refused() -> None:
    for height, width in ((8, 34), (34, 8)):
        with pytest.raises(UserError, match=r"positions for backbone.axes_lens=\[16, 16, 16\] of text, rows"):
            declared_of("lumina2").check((16, height, width))


def test_more_text_than_positions_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"^texts have 16 tokens, .* for fewer than 16; give data.text_encoder"):
        backbone_of(folders["lumina2"], "lumina2")(noise("lumina2", 2), torch.full((2,), 0.5), texts("lumina2", 16, 3))


def test_layers_of_the_text_are_enough_and_oblongs_small_enough(folders: dict[str, Path]) -> None:
    text = texts("hidream", 4)
    fewer = Part.of(text[LAYERS].layers_BSLD[:, :2], text[LAYERS].mask_BL)
    with pytest.raises(UserError, match=r"^a block sees layer 2 .* gives 2 layers; give data.text_encoder.layers"):
        backbone_of(folders["hidream"], "hidream")(
            noise("hidream", 1), torch.full((1,), 0.5), Condition(dict(text.parts) | {LAYERS: fewer})
        )
    declared_of("hidream").check((16, 32, 32))
    with pytest.raises(UserError, match=r"^x0 of 8x22 is larger than backbone.max_resolution=\[12, 14\]"):
        declared_of("hidream").check((16, 8, 22))
    with pytest.raises(UserError, match="^backbone.llama_layers has 2 numbers, and there are 4 blocks"):
        declared_of("hidream", llama_layers=[0, 1]).check((16, 8, 8))


def test_experts_without_gradients_are_refused(tmp_path: Path) -> None:
    file = write_tiny(tmp_path, "hidream") / "transformer" / "config.json"
    file.write_text(file.read_text().replace('"force_inference_output": false', '"force_inference_output": true'))
    with pytest.raises(UserError, match="force_inference_output=true, with which experts compute without grad"):
        backbone_of(tmp_path, "hidream")


@pytest.mark.parametrize("case", ["flux", "flux2"])
def test_a_scale_of_guidance_is_for_what_embeds_one(case: str) -> None:
    declared_of(case).check(CASES[case].latent)
    declared_of(case, guidance=None, guidance_embeds=False).check(CASES[case].latent)
    for changes in ({"guidance": None}, {"guidance_embeds": False}):
        with pytest.raises(UserError, match=r"^backbone.guidance=.*: this model embeds .*; give "):
            declared_of(case, **changes).check(CASES[case].latent)


@every
def test_objectives_of_another_kind_are_refused(case: str, compose: Callable[..., Any]) -> None:
    from urepa.config.declared import declaration_of

    flow, ddpm = (declaration_of(compose(f"objective={name}")["objective"]) for name in ("flow_sd3", "ddpm_eps_pixart"))
    own, other = (ddpm, flow) if FAMILY.get(case, case) == "pixart" else (flow, ddpm)
    declared_of(case).check_objective(own)
    with pytest.raises(UserError, match="choose an objective of that kind"):
        declared_of(case).check_objective(other)
