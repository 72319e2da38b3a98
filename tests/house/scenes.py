"""Short runs that together use every package. A scene is a folder with a training run and the results of other commands
on that run. In a command `{run}` is the folder of its first run, `{material}` the data that scenes share."""

from __future__ import annotations

WIDTH = 128  # of the teacher of photographs; tokens as int8 come in blocks of so many
SMALL = [
    "trainer.max_steps=12",
    "trainer.batch_size=8",
    "trainer.log_every=2",
    "trainer.validate_every=4",
    "trainer.validation_group=10",
    "trainer.checkpoint_every=6",
    "trainer.threads=1",
]
DIGITS = ["data.limit=100", "data.validation_images=20", "data.test_images=20", "data.root=digits"]
NO_EVALUATION = ["evaluation=none", "tracking=none"]
TINY = ["backbone.block_out_channels=[32,32,32]", "backbone.cross_attention_dim=32", *SMALL]
UNET = [*TINY, *DIGITS, "loss.warmup_steps=4"]
SIT = [
    "+experiment=repa_cifar10_pixels",
    "data=digits",
    "teacher=efficientnet_lite0",
    "backbone.depth=4",
    "backbone.width=64",
    "backbone.heads=2",
    *SMALL,
    *DIGITS,
]
SAMPLES = [
    "evaluation=digits",
    "evaluation.samples.per_class=1",
    "evaluation.samples.sampler_steps=2",
    "evaluation.samples.knn=1",
]
PROBED = ["alignment", "knn", "linear_probe", "spatial"]
LOOKED_AT = [
    f"evaluation=[{','.join(PROBED)},generation]",
    *(f"evaluation.{probe}.{split}_images=20" for probe in PROBED[1:3] for split in ("train", "test")),
    "evaluation.knn.k=5",
    "evaluation.alignment.images=20",
    "evaluation.alignment.neighbours=3",
    "evaluation.spatial.images=20",
    "evaluation.generation.images.count=20",
    "evaluation.generation.images.steps=2",
    "evaluation.generation.subset=20",
    "evaluation.generation.kid_subset_size=10",
]
PHOTOS = [
    "data=track_a",
    "data.root=cache",
    "data.images={material}/photos",
    "data.train_images=64",
    "data.val_images=16",
    "data.image_size=64",
    "data.vae={material}/sd",
    "data.text={material}/sd",
    "data.class_names={material}/names.txt",
    "data.latent_shape=[4,8,8]",
    "data.num_classes=2",
    "data.flip=true",
    "data.token_dtype=int8",
    "data.moments=true",
    "teacher.model={material}/dino",
    "teacher.image_size=56",
    "teacher.grid=[4,4]",
    f"teacher.width={WIDTH}",
]
TRACK_A = [
    "+experiment=track_a",
    "backbone.weights={material}/sd",
    "trainer.precision=fp32",
    "trainer.validation_group=8",
    *(o for o in SMALL if not o.startswith("trainer.validation_group")),
    *(o for o in PHOTOS if o != "data=track_a"),
    "tracking=none",
]
FOLDER = [
    "data=folder",
    "data.images={material}/photos/train",
    "data.flip=true",
    "data.validation_images=10",
    "data.test_images=8",
]
BOTH = [
    "teacher=several",
    "+teacher@teacher.teachers.fine=efficientnet_lite0",
    "+teacher@teacher.teachers.coarse=efficientnet_lite0",
    "teacher.teachers.coarse.image_size=160",
]
GENERATE = ["urepa.generate", "run={run}", "classes=[1,2]", "n=1", "steps=3", "guidance=2"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]

MISTAKES = "mistakes"  # the scene whose commands end with an error

SCENES: dict[str, list[list[str]]] = {
    "quickstart": [
        ["urepa.train", *UNET, *SAMPLES],
        ["urepa.train", *UNET, *SAMPLES],  # says that it is finished
        ["urepa.evaluate", "run={run}", *LOOKED_AT],
        [*GENERATE],
        ["urepa.export", "run={run}", "out=exported"],
        ["urepa.train", *UNET, *SAMPLES, "loss.lambda_max=0.1"],
        ["urepa.train", "resume={run}", "trainer.max_steps=16"],
    ],
    "taps": [["urepa.train", *UNET, *NO_EVALUATION, "+ablation=taps_three", "loss.level=both"]],
    "token_level": [["urepa.train", *UNET, *NO_EVALUATION, "loss.level=token", "loss.diffusion_fraction=0.5"]],
    "control": [["urepa.train", *TINY, *DIGITS, *NO_EVALUATION, "loss=none", "seed=3", "objective=ddpm_eps"]],
    "two_ranks": [[*TORCHRUN, "-m", "urepa.train", *UNET, *NO_EVALUATION]],
    "sit": [
        ["urepa.train", *SIT, *NO_EVALUATION, "head=irepa", "loss.spatial_norm=0.6"],
        ["urepa.evaluate", "run={run}", *LOOKED_AT],
        [*GENERATE, "sampler=sde"],
        ["urepa.export", "run={run}", "out=exported"],
    ],
    "sit_learned": [
        [
            "urepa.train",
            *SIT,
            *NO_EVALUATION,
            "backbone.positions=learned",
            "head=irepa_hidden",
            "head.hidden=32",
            "objective=flow_lognormal",
        ],
        [*GENERATE, "sampler=heun"],
    ],
    "sit_time": [
        [
            "urepa.train",
            *SIT,
            *NO_EVALUATION,
            "head=repa_mlp_time",
            "loss.time_power=1",
            "schedule.stop_step=9",
            "objective=flow_cosine",
        ]
    ],
    "several_teachers": [["urepa.train", *SIT, *NO_EVALUATION, *BOTH]],
    "track_a": [
        ["urepa.preprocess", *PHOTOS],
        ["urepa.preprocess", *PHOTOS, "stage=verify"],
        ["urepa.train", *TRACK_A],
        [*GENERATE[:2], "classes=[0,1]", *GENERATE[3:]],
        ["urepa.export", "run={run}", "out=exported"],
        [
            "urepa.evaluate",
            "run={run}",
            "evaluation=[alignment,knn]",
            "evaluation.alignment.images=16",
            "evaluation.knn.k=2",
        ],
    ],
    "folder": [
        ["urepa.preprocess", *FOLDER],
        ["urepa.train_classifier", *FOLDER, "epochs=1"],
        ["urepa.train_encoder", *FOLDER, "epochs=1", "width=64", "depth=1"],
        ["urepa.train", *FOLDER, *TINY, *NO_EVALUATION],
    ],
    "comparison": [["urepa.compare", "runs={material}/positions", "out=all.json"]],
    "texts": [
        ["urepa.train", "--help"],
        ["urepa.train", "--cfg", "job", "+experiment=track_a"],
        ["urepa.plan", "+experiment=track_a"],
        ["urepa.plan", "+experiment=repa_imagenet256", "device=cpu"],
        ["urepa.describe", "+experiment=track_a", "+ablation=lora_16", "out=paper"],
        ["urepa.describe", "+experiment=repa_cifar10_cpu", "out=paper_sit"],
        ["launchers.ablation_grid", "+experiment=track_a", "data.root=DIR", "seeds=0,1", "dry_run=true"],
        ["launchers.ablation_grid", "study=positions", "data.source=folder", "data.images=DIR", "dry_run=true"],
    ],
    MISTAKES: [
        ["urepa.train", "head.depth=0"],
        ["urepa.train", "head.dept=1"],
        ["urepa.evaluate", "run=nowhere"],
        ["urepa.compare", "runs=nowhere"],
        ["launchers.ablation_grid", "study=nothing"],
    ],
}
