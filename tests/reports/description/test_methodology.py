"""The methodology section agrees with the composed config and its counts, for every experiment."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from latex import assert_closed, pages, unescaped

from urepa.cli import CONF
from urepa.config.declared import declaration_of
from urepa.core.descriptions import format_value
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten
from urepa.costs.estimate import Device, Plan, plan
from urepa.method.objectives.ddpm_math import EpsilonMath
from urepa.method.step_schedules import cosine_with_warmup
from urepa.reports.description.markdown_and_latex import as_latex, as_markdown
from urepa.reports.description.methodology import generic_text, methodology
from urepa.reports.description.model import backbone
from urepa.reports.description.subject import Subject, subject_of
from urepa.runs.checkpoint import save
from urepa.runs.identity import NOT_IDENTITY
from urepa.training.assembly import build_loss, build_model, build_part
from urepa.training.optimizer import groups_of

pytestmark = pytest.mark.long

Compose = Callable[..., dict[str, Any]]
H200 = Device("H200", "cuda", 790e12, 141e9)
# tests/test_urepa_experiments.py and tests/test_repa_experiments.py describe them at full size
TOO_LARGE = {"nanodit", "nanodit_warm", "urepa_sdxl", "urepa_kolors"} | {
    f"repa_{name}" for name in ("sd3", "flux", "sana", "pixart", "chroma", "auraflow", "flux2", "lumina2", "hidream")
}
EXPERIMENTS = sorted({p.stem for p in (Path(CONF) / "experiment").glob("*.yaml")} - TOO_LARGE)
# what a run without alignment does not have
OF_ALIGNMENT = ("head", "teacher", "schedule", "optimizer.lr.head", "optimizer.weight_decay.head")
BESIDE = {  # of folders that are not here
    "captions_smoke": ["data.images=DIR", "data.num_classes=2", "data.limit=100"],
    "family_smoke": ["data.images=DIR", "data.num_classes=2", "data.limit=100"],
    "captions_cifar10": ["data.images=DIR"],
    "finetune_cifar10": ["data.images=DIR"],
    "nanodit_smoke": ["data.images=DIR", "data.num_classes=2", "data.limit=100"],
    "urepa_sd15_captions": ["data.images=DIR", "data.num_classes=1", "data.train_images=100"],
}
HOSTILE = "a_b%$<script>&#{x}^~\\y|z`"
SMALL = ("backbone.block_out_channels=[32,32]", "backbone.attention=[false,true]", "backbone.cross_attention_dim=32")


def texts(
    config: dict[str, Any], device: Device = H200, measured: Path | None = None, planned: Plan | None = None
) -> tuple[str, str]:
    """The text in Markdown and LaTeX."""
    sections = methodology(subject_of(config, planned or plan(config, device, measured)), "A test.")
    return as_markdown("Methodology", sections), as_latex("Methodology", sections)


def plain(markdown: str) -> str:
    """The text without escapes."""
    text = re.sub(r"\\([\\`*_\[\]|~#$!])", r"\1", markdown)
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def prose(markdown: str) -> str:
    """The text before the tables of settings."""
    return plain(markdown.split("\n## Settings\n")[0])


def settings(markdown: str) -> dict[str, str]:
    rows = markdown.split("\n## Settings\n")[1].splitlines()
    cells = [re.fullmatch(r"\| (.*?) \| (.*) \|", row) for row in rows]
    return {plain(found[1]): plain(found[2]) for found in cells if found and found[1] != "key"}


@pytest.fixture(scope="module")
def small(compose: Compose) -> Compose:
    """The quickstart with a smaller U-Net."""
    return lambda *overrides: compose(*SMALL, *overrides)


@pytest.mark.slow  # SD-1.5 is counted four times
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_described(compose: Compose, experiment: str) -> None:
    """Every setting with its value, every counted parameter, the trained weights by group; both texts are complete."""
    config = compose(f"+experiment={experiment}", *BESIDE.get(experiment, ()))
    planned = plan(config, H200)
    markdown, latex = texts(config, planned=planned)
    text, shown = prose(markdown), settings(markdown)
    left_out = (*NOT_IDENTITY, "arm", *(() if declaration_of(config["loss"]).taps else OF_ALIGNMENT))
    expected = {
        key: format_value(value)
        for key, value in flatten(config).items()
        if not any(f"{key}.".startswith(f"{k}.") for k in left_out)
    }
    assert shown == expected
    for part, counts in planned.counted.parameters.items():
        assert f"| {part} | {counts['all']:,} | {counts['trainable']:,} |" in text
    for group, (parameters, _) in planned.counted.groups.items():
        rate, decay = (config["optimizer"][key][group] for key in ("lr", "weight_decay"))
        assert f"| {group} | {parameters:,} | {format_value(rate)} | {decay:g} |" in text
    trainer = config["trainer"]
    assert f"{trainer['max_steps']:,} updates of {trainer['batch_size']} samples" in text
    for split, name in (("train", "training"), ("val", "validation")):
        assert f"{planned.counted.samples[split]:,} {name} images" in text
    assert f"at least {planned.floor_hours:.3g} hours on one device (est.)" in text
    assert_closed(latex)


@pytest.mark.slow
def test_the_documented_run_is_described(compose: Compose) -> None:
    """Known figures: 155,648 parameters in 16 tensors, a head of 2,360,320, 862 M in all, 182.7 TFLOP, 4.3 hours."""
    text = prose(texts(compose("+experiment=track_a"))[0])
    for words in (
        "rank r = 8 and α = 8, scale 1, are added to the query, key, value and output projections of every attention "
        "layer in the middle block: 155,648 parameters in 16 tensors",
        "| mid | 8×8, 1280 | 16×16, 1024 | 1 |",
        "The 1 head(s) have 2,360,320 parameters in 3 tensors",
        "Of 862,036,932 parameters 2,515,968 train (0.29%)",
        "all 37×37 patch tokens of its last layer, without class and register tokens, are average-pooled to 16×16",
        "40 epochs of 1,562 updates",
        "λ rises linearly from 0 to 0.5 over the first 3,000 updates and stays there",
        "182.7 TFLOP",
        "least 4.31 hours",
        "bf16 by autocast, frozen weights held in bf16",
    ):
        assert words in text


@pytest.mark.slow
def test_counts_are_those_of_the_model_that_trains(small: Compose) -> None:
    config = small("+loss.taps.enc_last=3", "head.depth=1", "loss.diffusion_fraction=0")
    track, teacher, loss = build_part(config["data"]), build_part(config["teacher"]), build_loss(config)
    model, group = build_model(config, track, teacher, loss)
    text = prose(texts(config)[0])
    trains = {name: sum(p.numel() for p in own) for name, own in groups_of(model, group).items()}
    every = sum(p.numel() for p in model.parameters())
    assert f"Of {every:,} parameters {sum(trains.values()):,} train" in text
    assert f"| backbone | {trains['backbone']:,} | 0.001 |" in text
    assert f"The 2 head(s) have {trains['head']:,} parameters in 4 tensors" in text
    assert "| mid | 8×8, 32 | 4×4, 1280 | 0.25 |" in text
    assert "| enc_last | 8×8, 32 | 4×4, 1280 | 0.75 |" in text
    assert "No sample has a diffusion term" in text


@pytest.mark.slow
def test_overrides_change_the_text(small: Compose) -> None:
    """Not only the tables of settings at the end."""
    base = prose(texts(small())[0])
    for override in (
        "loss.lambda_max=0.25",
        "loss.warmup_steps=70",
        "loss.manifold_weight=2",
        "head.depth=1",
        "teacher.grid=[2,2]",
        "objective=ddpm_eps",
        "objective.beta_schedule=scaled_linear",
        "data.name=ciphers",
        "data.cfg_dropout=0.2",
        "optimizer.lr.head=3e-4",
        "optimizer.eps=1e-6",
        "trainer.max_steps=700",
        "trainer.batch_size=40",
        "trainer.clip_norm=null",
        "trainer.ema_decay=0.9",
        "trainer.precision=bf16",
        "evaluation.samples.sampler_steps=30",
        "seed=7",
    ):
        assert prose(texts(small(override))[0]) != base, override


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loss.lambda_max=0"], "λ = 0 throughout: the control"),
        (["loss.warmup_steps=0"], "λ = 0.5 from the first update on"),
        (["trainer.max_steps=31"], "of which this run makes 31: it ends at λ = 0.25."),
        (["loss.diffusion_fraction=0.25"], "1 of every 4 samples, drawn anew at each update"),
        (["loss.level=both"], r"0.5 \cdot \frac{1}{B (B - 1)}"),
        (["loss.manifold_clip=0.1"], r"\min(\mathcal{L}_{\mathrm{manifold}}, 0.1)"),
        (["loss.spatial_norm=0.6"], "channel by channel: less 0.6 of their mean"),
        (["loss.time_power=2", "loss.manifold_weight=0"], "g(t) = u(t)^{2} / \\operatorname{E}[u(t)^{2}]"),
        (["schedule.stop_step=300"], "stays there until update 300, from which on it is 0."),
        (["schedule.stop_step=300"], "validations still do both, to measure whether the alignment lasts."),
        (["schedule=linear"], "and falls in a straight line to 0 at the last update."),
        (["schedule=linear"], r"\lambda(s) = 0.5 \bigl[ (1 - p) \bigr], \qquad p = \min\Bigl( \frac{s - 60}{840}, 1"),
        (["schedule=linear", "schedule.decay_steps=300"], "From update 300 on training neither runs the teacher nor"),
        (["schedule=similarity_cutoff"], "and stays there, unless the similarity cuts it off."),
        (["schedule=similarity_cutoff"], r"m_{s-d} \ge 0.8, \qquad m_s = 0.99\, m_{s-1} + 0.01\, \bigl( 1 - "),
        (
            ["schedule=similarity_cutoff", "schedule.recoverable=true"],
            "λ is 0 while this holds and returns when it does not",
        ),
        (["schedule=gradient_conflict"], "unless its gradient turns against the loss's."),
        (["loss=dispersive", "loss.tap=mid"], "The loss disperses the states z of mid over the B samples"),
        (["optimizer.final_ratio=1"], "over the first 90 updates and stay at their peaks"),
        (["optimizer.final_ratio=1"], r"\begin{cases} s / W & s < W \ 1 & s \ge W \end{cases}, \qquad W = 90"),
        (["optimizer.warmup_ratio=0"], r"1 + \cos \frac{\pi s}{S} \bigr) \Bigr], \qquad S = 900, \quad r = 0"),
        (["data.online_teacher=true"], "It is run during training."),
        (["trainer.ema_decay=0.9"], "moving average of the trainable parameters, with decay 0.9."),
        (["trainer.ema_warmup=true"], "with decay min(0.99, (1 + n)/(10 + n)) at the update after n applied ones."),
    ],
)
def test_the_loss_in_words(small: Compose, overrides: list[str], words: str) -> None:
    assert words in prose(texts(small(*overrides))[0])


@pytest.mark.slow
def test_the_cost_of_an_update_after_the_stop(small: Compose) -> None:
    config = small("schedule.stop_step=300", "data.online_teacher=true")
    planned = plan(config, H200)
    before, after, whole = planned.flops_per_step / 1e12, planned.flops_after_stop / 1e12, planned.run_flops / 1e15
    assert after < 0.9 * before
    said = (
        f"takes {before:.4g} TFLOP and from update 300 on {after:.4g} TFLOP, the run with its validations {whole:.4g}"
    )
    assert said in prose(texts(config)[0])


@pytest.mark.slow
def test_a_warm_start_in_words(small: Compose, tmp_path: Path) -> None:
    assert "with random initial weights, on x0 of" in (text := prose(texts(small())[0]))
    assert "EMA weights" not in text
    config = small(f"warm_start.checkpoint={tmp_path / 'run'}")
    text = prose(texts(config)[0])
    assert "random initial" not in text
    assert f"begins at the EMA weights of the run {tmp_path / 'run'}: all that trains" in text
    (tmp_path / "run").mkdir()
    save(tmp_path / "run" / "checkpoints", 1200, {"weights": {}, "ema": {}, "optimizer": {}}, {}, "")
    assert f"of the run {tmp_path / 'run'}, at step 1,200: all that" in prose(texts(config)[0])
    config = small(f"warm_start.checkpoint={tmp_path / 'run'}", "warm_start.allow_missing=[heads.mid.*]")
    assert "take their values, except heads.mid.*, which keep" in prose(texts(config)[0]).replace("takes", "take")


def test_adapters_that_start_warm_leave_the_base_as_it_is(compose: Compose) -> None:
    adapters = ("lora=all_attention", "optimizer=adamw_lora")
    config: Any = compose("+experiment=repa_cifar10_pixels", *adapters, "warm_start.checkpoint=there")
    whole: Any = None  # what is counted of it has no part in this
    subject = Subject(config, whole, whole, whole, build_part(config["data"]), None)
    assert "adaLN-Zero, with random initial weights: 6 blocks" in str(backbone(subject, config["backbone"]))
    loaded = config["backbone"] | {"weights": "sit.pt"}
    assert "adaLN-Zero, with the weights of sit.pt: 6 blocks" in str(backbone(subject, loaded))
    subject.config["lora"] = compose()["lora"]
    assert "adaLN-Zero: 6 blocks" in str(backbone(subject, config["backbone"]))


def test_a_batch_that_is_larger_than_the_data_is_refused(small: Compose) -> None:
    said = "trainer.batch_size=4000 is more than the 1437 training samples; give a smaller"
    with pytest.raises(UserError, match=said):
        texts(small("trainer.batch_size=4000"))


def test_rates_that_never_change_have_no_formula(small: Compose) -> None:
    text = prose(texts(small("optimizer.final_ratio=1", "optimizer.warmup_ratio=0"))[0])
    assert "The learning rates stay at their peaks." in text
    assert r"\eta" not in text


@pytest.mark.slow
def test_a_tracks_latents_in_words(compose: Compose) -> None:
    numbers = ("data.train_images=100", "data.val_images=10", "data.image_size=64", "data.latent_shape=[4,8,8]")
    sit = ("+experiment=repa_cifar10", *numbers, "backbone.depth=8", "backbone.width=96", "teacher.grid=[4,4]")
    text = prose(texts(compose(*sit, "data.online_latents=true"))[0])
    assert "64×64 pixels are encoded at every update during training by the VAE of stabilityai/sd-vae-ft-mse" in text
    assert "a sample of its posterior" in text
    assert "mirrored with probability 0.5, for backbone and teacher alike" in text
    assert "| VAE | 83,653,863 | 0 |" in text
    assert "resampled from 37×37 as Meta's code does (bicubic, by the factor (n + 0.1)/37)" in text
    assert "37×37 as timm and REPA's code do" in prose(texts(compose(*sit, "teacher.positions=timm"))[0])
    assert "are encoded once by the VAE" in prose(texts(compose(*sit))[0])


@pytest.mark.slow
def test_without_alignment_no_teacher_and_no_head(small: Compose) -> None:
    markdown, latex = texts(small("loss=none"))
    text = prose(markdown)
    assert "nothing is aligned" in text
    assert "EfficientNet" not in markdown
    assert "| head |" not in text
    assert not [key for key in settings(markdown) if key.startswith(("head.", "teacher.")) or key.endswith(".head")]
    assert_closed(latex)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stride", "grid", "words"),
    [
        (32, 4, "its last map of 4×4 is average-pooled to 4×4 tokens of width 1,280"),
        (16, 8, "its last map at stride 16 of 8×8 is average-pooled to 8×8 tokens of width 112"),
        (8, 8, "its last map at stride 8 of 16×16 is average-pooled to 8×8 tokens of width 40"),
    ],
)
def test_the_description_names_map_and_head(small: Compose, stride: int, grid: int, words: str) -> None:
    given = (f"teacher.stride={stride}", f"teacher.grid=[{grid},{grid}]", "head=irepa_hidden", "head.hidden=24")
    text = prose(texts(small(*given))[0])
    assert words in text
    assert "a 3×3 convolution to width 24, SiLU, and a dense layer on each token by itself, and where" in text


@pytest.mark.slow
def test_hostile_values_are_text(small: Compose) -> None:
    config = small()
    config["data"]["name"] = HOSTILE
    markdown, latex = texts(config)
    assert "<script" not in markdown
    assert settings(markdown)["data.name"] == HOSTILE
    assert f"{HOSTILE} (source digits)" in prose(markdown)
    assert_closed(latex)
    lines = [line for line in latex.replace(" & ", " ").replace(r" \\", "").splitlines() if "script" in line]
    assert len(lines) == 2
    assert [unescaped(line) for line in lines] == [[], []]


@pytest.mark.slow
def test_latex_compiles(small: Compose, tmp_path: Path) -> None:
    config = small("loss.level=both", "objective=flow", "optimizer.warmup_ratio=0")
    config["data"]["name"] = HOSTILE
    assert pages(texts(config)[1], tmp_path) > 2


@pytest.mark.slow
def test_hours_are_expected_only_from_a_measurement(small: Compose, tmp_path: Path) -> None:
    config = small()
    assert "expected hours are not stated" in prose(texts(config)[0])
    assert "no lower bound" in prose(texts(config, Device("cpu", "cpu", None, None))[0])
    row = '"path": "urepa", "device": "cpu", "batch_size": 48, "step_s": 0.2, "tflops_per_s": 0.05'
    (tmp_path / "bench.json").write_text(f'[{{{row}, "peak_memory_bytes": 1, "saved_bytes_per_sample": 1}}]')
    cpu = Device("cpu", "cpu", None, None)
    text = prose(texts(config, cpu, tmp_path / "bench.json")[0])
    hours = plan(config, cpu).run_flops / 0.05e12 / 3600
    assert f"0.05 TFLOP/s of an update measured on cpu (batch 48, 0.2 s; measured) {hours:.3g} hours" in text


EVALUATIONS = {
    "knn": "A k-NN (k = 20, cosine) of the tap mid and its head, below the teacher's own tokens and above the model",
    "linear_probe": "at t = 500 under the null condition: fitted to 5,000 training images at most and read on 2,000",
    "alignment": "on 2,000 held-out images at most, at t = 50, 200, 350, 500, 650, 800 and 950: token cosine",
    "generation": "1,000 by DDIM in 25 steps without guidance, compared with all training images in the features of "
    "pixels (Pixels) and efficientnet_lite0 (EfficientNetLite0).",
    "cifar10_fd": "pixels (Pixels), cifar_cnn (CifarCNN, cifar_cnn.safetensors) and efficientnet_lite2 "
    "(EfficientNetLite2). Fréchet distance over all of them, with its standard error by a jackknife over tenths of "
    "1,000 of the images;",
    "inception": "in the features of inception (Inception, pt_inception-2015-12-05-6726825d.pth).",
    "cifar10": "Probe: the tap mid, mean-pooled, at t = 100",
    "spatial": "Spatial structure of the tap mid and its head at t = 500 on 1,000 held-out images at most",
    "dense": "above the model before training, below EfficientNetLite0: mIoU, fitted to 1,000 images at most",
    "clip_score": "against the prompts of the classes named in imagenet, by openai/clip-vit-large-patch14.",
    "digits": "20 images of each of 10 classes by DDIM in 25 steps without guidance. A k-NN (k = 5)",
}


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    "name", sorted(p.stem for p in (Path(CONF) / "evaluation").glob("*.yaml") if p.stem != "cifar10_pixels")
)  # which reads a SiT's tap, with the parts of cifar10
def test_every_evaluation_is_described(small: Compose, name: str) -> None:
    config = small(f"evaluation={name}")
    assert all(hasattr(declaration_of(part), "description") for part in config["evaluation"].values())
    assert EVALUATIONS.get(name, "all losses are computed on the 180 validation images") in prose(texts(config)[0])


def test_a_part_without_a_description_is_named_with_its_settings() -> None:
    part = {"_target_": "nowhere.DiT", "depth": 12, "patch": {"size": 2}, "base": None}
    assert generic_text("backbone", part) == "The backbone is DiT, with depth = 12, patch.size = 2 and base = null."
    assert generic_text("lora", {"_target_": "nowhere.simple"}) == "The lora is simple."


@pytest.mark.slow
def test_formulas_agree_with_the_code(small: Compose) -> None:
    """The learning rate's, ε's and v's formulas, computed by hand from the text's symbols."""
    text = prose(texts(small("trainer.max_steps=70", "optimizer.warmup_ratio=0.21"))[0])
    w, s = (int(n) for n in re.findall(r"\\qquad W = (\d+), \\quad S = (\d+)", text)[0])
    assert (w, s) == (15, 70)
    for step in range(s):
        by_hand = step / w if step < w else 0.5 * (1 + torch.cos(torch.tensor(torch.pi * (step - w) / (s - w))))
        assert cosine_with_warmup(step, s, 0.21) == pytest.approx(float(by_hand), abs=1e-6)
    objective = EpsilonMath(0.00085, 0.012, "scaled_linear", 1000)
    left = float(objective.alphas_cumprod[-1])
    text = prose(texts(small("objective=ddpm_eps_scaled"))[0])
    assert f"linear in its square root over t; at the last timestep a share of {left:.2g} " in text
    assert r"y = \epsilon" in text


@pytest.mark.slow
def test_a_grid_or_diagonal_that_is_not_the_default_is_described(small: Compose) -> None:
    """The small U-Net's middle block has 8x8 tokens, its teacher 4x4."""
    before, after = (
        prose(texts(small(*keys))[0])
        for keys in ((), ("loss.grid=student", "loss.level=token", "loss.manifold_diagonal=true"))
    )
    assert "| mid | 8×8, 32 | 4×4, 1280 | 1 |" in before
    assert "| mid | 8×8, 32 | 4×4, 1280 | 8×8 | 1 |" in after
    assert "compared on" not in before
    assert "A tap and a teacher are compared on the tap's grid" in after
    assert r"\frac{1}{N^2} \sum_{m, n}" in after
