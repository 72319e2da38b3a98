"""Mistakes with `train` and the tiny run: the contents of its folder and its caches, paths, and weights."""

from __future__ import annotations

from mistakes import Mistake, bound, in_content, of, tiny
from mistakes.parts import (
    CONFIG,
    FILE,
    FOREIGN,
    HERE,
    PICKLE,
    RUN,
    STORE,
    SUMMARY,
    TINY,
    both,
    closed,
    cut,
    edit,
    remove,
    write,
)

TOKENS = f"{STORE}/tokens_*"
OLD_TOKENS = both(remove(SUMMARY), edit(f"{TOKENS}/manifest.json", mean_token_sha256=None))  # as earlier versions made
TEACHER = "teacher=dinov2_l teacher.image_size=56 teacher.model"
TINY_DATA = " ".join(o for o in TINY if o.startswith(("data.", "trainer.", "evaluation", "tracking")))
SIT = f"+experiment=repa_cifar10_pixels data=digits {TINY_DATA} data.unshuffle=1 teacher.image_size=128"
SIT += " teacher.grid=[4,4]"
PROMPTS = f"backbone=sd15 backbone.weights=random backbone.prompts=p.pt {TINY_DATA}"


def again(*rows: tuple) -> list[Mistake]:
    """The tiny run's own command, after a change of the files."""
    return [Mistake(m.command, f"{m.typed} {HERE}", m.says, "caches run", m.change, m.bound) for m in tiny(*rows)]


def sit(*rows: tuple) -> list[Mistake]:
    """Mistakes with a SiT that starts from weights, over the same caches; the folder also has a run of another
    backbone."""
    return [Mistake("urepa.train", f"{SIT} backbone.weights={row[0]}", row[1], "caches run", *row[2:]) for row in rows]


TRAIN = [
    *again(
        ("loss.lambda_max=0.25", "holds a run with another config .loss.lambda_max: 0.5 there, 0.25 here"),
        ("seed=1", "holds a run with another config .seed"),
        ("", CONFIG, write(CONFIG, "a: [")),
        ("", CONFIG, write(CONFIG, FOREIGN)),
        ("", CONFIG, write(CONFIG, "[1]")),
        ("", SUMMARY, write(SUMMARY, "{")),
        ("", SUMMARY, write(SUMMARY, "[]")),
        ("", SUMMARY, edit(SUMMARY, step=None)),
        ("", f"{RUN}/provenance.json", write(f"{RUN}/provenance.json", "{")),
        ("", f"{RUN}/provenance.json", write(f"{RUN}/provenance.json", "[]")),
        ("", "train.csv", write(f"{STORE}/train.csv", "a,b\n1,2\n")),
        ("", "val.csv", remove(f"{STORE}/val.csv")),
        ("", "latents/manifest.json", write(f"{STORE}/latents/manifest.json", "{")),
        ("", "latents/manifest.json", write(f"{STORE}/latents/manifest.json", "[]")),
        ("", "data.mdb", both(remove(SUMMARY), cut(f"{STORE}/latents/data.mdb", 9000))),
        ("", "data.mdb", write(f"{STORE}/latents/data.mdb", b"x" * 20000)),
        ("", "data.mdb", remove(f"{STORE}/latents/data.mdb")),
        ("", "digests.npy", write(f"{STORE}/latents/digests.npy", "x")),
        ("", "mean_token.npy", write(f"{TOKENS}/mean_token.npy", "x")),
        ("", "mean_token.npy is damaged", both(OLD_TOKENS, write(f"{TOKENS}/mean_token.npy", "x"))),
        ("", "mean_token.npy is damaged", both(OLD_TOKENS, write(f"{TOKENS}/mean_token.npy", PICKLE))),
    ),
    *tiny(
        ("data.root=file", "file", FILE),
        ("data.root=file/below", "file", FILE),
        ("data.root=", "data.root="),
        ("data.stage_to=x", "data.stage_to"),
        ("data=folder data.num_classes=3 data.root=d data.images=nowhere", "data.images=nowhere"),
        ("data=folder data.num_classes=3 data.root=d data.images=file", "data.images=file", FILE),
        ("data=folder data.num_classes=3 data.root=d data.images=", "data.images="),
        ("data=folder data.num_classes=3 data.root=d data.images=.", "neither CLASS/\\* nor train"),
        ("data=cifar10_pixels data.num_classes=3 data.root=d data.source=parquet data.images=.", "train\\*.parquet"),
        ("data=cifar10_pixels data.num_classes=3 data.root=d data.source=webdataset data.images=.", "no \\*\\.tar"),
        ("data=cifar10_pixels data.root=d data.caption_column=text", "data.caption_column has no effect without"),
        ("data=cifar10_pixels data.root=d data.source=cifar_binary data.images=.", "lacks train.bin"),
        (
            "data=cifar10_pixels data.root=d data.source=cifar_binary data.images=.",
            "data_batch_1.bin is truncated",
            write("data_batch_1.bin", b"x" * 4000),
        ),
        ("warm_start.checkpoint=outputs", "outputs has no valid checkpoint", write("outputs/x", "")),
    ),
    *in_content(
        tiny(
            (
                "data=cifar10_pixels data.root=d data.source=parquet data.images=.",
                "parquet",
                both(write("train.parquet", "x"), write("test.parquet", "x")),
            ),
        )
    ),
    *of(
        "urepa.train",
        (f"resume={RUN} trainer.max_steps=1", "before the end of that run", "caches run"),
        (f"resume={RUN} trainer.max_steps=4 loss.lambda_max=1", "takes trainer.max_steps=N alone", "caches run"),
        (f"resume={RUN} trainer.max_steps=4", "no valid checkpoint", "caches run", remove(f"{RUN}/checkpoints")),
        (f"resume={RUN} trainer.max_steps=4", CONFIG, "caches run", write(CONFIG, "{")),
        (f"resume={RUN} trainer.max_steps=4", SUMMARY, "caches run", write(SUMMARY, "{")),
        (
            f"resume={RUN} trainer.max_steps=4",
            "is not what it was",
            "caches run",
            write(f"{RUN}/metrics.jsonl", "{}\n"),
        ),
        (f"resume={RUN}/checkpoints trainer.max_steps=4", "is not a run's folder", "caches run"),
        ("", "outputs", "", write("outputs", "x")),
        ("hydra.run.dir=file/x", "file", "", FILE),
    ),
    bound("urepa.train", "tracking=none", "outputs: Permission denied|may read and write", "images", "."),
    Mistake("urepa.train", "data.root=d/e tracking=none", "d/e", "", both(write("d/x", ""), closed("d")), True),
    bound("urepa.train", f"resume={RUN} trainer.max_steps=4", RUN, "caches run", "outputs"),
]

WEIGHTS = [
    *sit(
        ("random backbone.width=33", "backbone.*width=33"),
        ("random backbone.heads=5", "backbone.*heads=5"),
        ("random backbone.patch=5", "this SiT has 3x3 patches and the teacher 4x4 tokens"),
        ("nowhere", "backbone.weights=nowhere is not there"),
        ("", "backbone.weights= is empty: give a path"),
        (".", "has no model.safetensors"),
        ("w.pt", "holds more than tensors, or no weights at all", write("w.pt", PICKLE)),
        ("w.pt", "holds more than tensors, or no weights at all|not a complete torch file", write("w.pt", "x")),
        ("w.safetensors", "not a complete safetensors file", write("w.safetensors", PICKLE)),
        ("w.safetensors", "not a complete safetensors file", write("w.safetensors", "")),
        (f"{RUN}/checkpoints/step_00000002/ema.safetensors", "does not fit this backbone"),
    ),
    *tiny((f"{TEACHER}=t.pth", "teacher.model=t.pth does not exist")),
    *of("urepa.train", (f"{PROMPTS}", "no prompt embeddings at p.pt", "caches")),
    *in_content(
        [
            *tiny(
                (
                    f"{TEACHER}=t.pth",
                    "teacher.model=t.pth is not a complete torch file of weights alone",
                    write("t.pth", PICKLE),
                ),
                (f"{TEACHER}=t", "teacher.model=t could not be loaded", write("t/config.json", "{")),
                (f"{TEACHER}=t", "teacher.model=t could not be loaded", write("t/x", "")),
            ),
            *of(
                "urepa.train",
                (f"{PROMPTS}", "p.pt holds more than tensors, or no weights at all", "caches", write("p.pt", PICKLE)),
                (f"{PROMPTS}", "p.pt", "caches", write("p.pt", "x")),
            ),
        ]
    ),
]

ALL = [*TRAIN, *WEIGHTS]
