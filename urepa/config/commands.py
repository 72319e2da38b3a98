"""The commands: what each does, its usage and the schema of its keys, by the name of its root in conf/."""

from __future__ import annotations

from dataclasses import dataclass

from urepa.config import command_schemas, compare_schema, encoder_schema

RUN = "[+experiment=NAME] [+ablation=NAME] [GROUP=NAME...] [KEY=VALUE...]"
OF_RUN = ("experiment", "ablation")  # groups that must be added with a plus
AGAIN = "The same command continues where it was stopped."


@dataclass(frozen=True)
class Command:
    """The parts of --help that do not follow from the keys."""

    module: str
    title: str  # what the command does
    schema: type
    usage: tuple[str, ...]  # what follows `python -m MODULE`
    examples: tuple[tuple[str, str], ...]  # what follows `python -m MODULE`, and what that does
    notes: tuple[str, ...] = ()
    heading: str = "Keys (KEY=VALUE)"  # heading of the keys without a section of their own
    takes: tuple[str, ...] | None = None  # the groups and keys of a run that it accepts; None: all of them


COMMANDS = {
    "train": Command(
        "urepa.train",
        "trains, validates and evaluates a run; the same command resumes it",
        command_schemas.Train,
        (RUN, f"-m {RUN}", "resume=FOLDER trainer.max_steps=N"),
        (
            ("", "the quickstart"),
            ("+experiment=cifar10 loss.lambda_max=0.25 seed=1", "an experiment with another λ and seed"),
            ("-m loss.lambda_max=0,0.5 head.depth=1,2", "a sweep: a run for each combination"),
        ),
        (
            "With -m, KEY=A,B,... and '+ablation=glob(*)' give several values; hydra/launcher=local and "
            "hydra/launcher=slurm_h200 run them in parallel.",
            "+simpletuner=FILE takes the alignment keys of a SimpleTuner config.json as overrides.",
        ),
    ),
    "preprocess": Command(
        "urepa.preprocess",
        "makes a track's caches, from images to verified latents and tokens",
        command_schemas.Preprocess,
        ("data=NAME [teacher=NAME] [KEY=VALUE...]",),
        (
            ("data=track_a data.images=IMAGENET data.root=DIR", "all stages in order"),
            ("data=track_a data.root=DIR stage=verify", "one stage"),
            ("data=track_a data.root=DIR shard=0/8", "an eighth of each stage; the eight parts can run in parallel"),
            ("data=track_a data.root=DIR stage=diagnose", "which tokens do not show their image as declared"),
        ),
        (AGAIN,),
    ),
    "train_classifier": Command(
        "urepa.train_classifier",
        "trains a small classifier on a track's training images, for evaluation=cifar10_fd and fashion_fd: no run is "
        "aligned to it",
        command_schemas.TrainClassifier,
        ("data=NAME [KEY=VALUE...]",),
        (
            ("data=cifar10_12k data.source=folder data.images=DIR", "three minutes on two cores"),
            ("data=cifar10_12k epochs=30 out=FILE", "longer, into another file"),
        ),
        ("An existing classifier is not trained again. A stopped training starts again from the beginning.",),
    ),
    "train_encoder": Command(
        "urepa.train_encoder",
        "trains a small masked autoencoder on a track's training images alone, for teacher=own_mae",
        encoder_schema.TrainEncoder,
        ("data=NAME [KEY=VALUE...]",),
        (
            ("data=cifar10_12k data.source=folder data.images=DIR", "20 epochs on 12,000 images of CIFAR-10"),
            ("data=cifar10_12k epochs=200 out=FILE", "longer, into another file: teacher.weights=FILE"),
        ),
        ("An existing encoder is not trained again. A stopped training continues from about a minute before.",),
    ),
    "prefetch": Command(
        "urepa.prefetch",
        "downloads the weights that an experiment needs and records their revisions in prefetch.json, so that jobs "
        "run with HF_HUB_OFFLINE=1",
        command_schemas.Prefetch,
        (RUN,),
        (
            ("+experiment=track_a", "SD-1.5, its VAE and text encoder, and DINOv2-L"),
            ("+experiment=track_a teacher=clip_l", "the same with another teacher"),
        ),
    ),
    "evaluate": Command(
        "urepa.evaluate",
        "repeats the evaluations of a finished run, or does others, on its EMA weights",
        command_schemas.Evaluate,
        ("run=FOLDER [evaluation=NAME|[NAME,...]] [KEY=VALUE...]", "-m 'run=glob(PATTERN)' [KEY=VALUE...]"),
        (
            ("run=outputs/NAME/seed0", "its own evaluation"),
            ("run=outputs/NAME/seed0 'evaluation=[alignment,knn]'", "other evaluations, in any combination"),
            ("run=outputs/NAME/seed0 evaluation=knn evaluation.knn.timestep=100", "with other settings"),
            ("-m 'run=glob(outputs/*/seed*)' evaluation=knn", "several runs, one after the other"),
        ),
        (
            "Results are added to the run's metrics.jsonl, summary.json and MLflow. If one evaluation or run fails, "
            "the others still run; the failures are listed at the end and the exit code is 1.",
        ),
    ),
    "generate": Command(
        "urepa.generate",
        "makes images of a run, or of published weights",
        command_schemas.Generate,
        ("run=FOLDER [KEY=VALUE...]", "checkpoint=FILE +experiment=NAME [GROUP=NAME...] [KEY=VALUE...]"),
        (
            ("run=outputs/NAME/seed0 classes=[207,360] n=16 guidance=4", "16 images of each of two classes"),
            ("run=outputs/NAME/seed0 size=512x768", "of another size than in training"),
            ("run=outputs/NAME/seed0 against=base", "the base weights' images of the same noise above each row"),
            ("checkpoint=FILE --help", "published weights: the parts of which they are composed"),
        ),
        (
            f"{AGAIN} A folder holds one request and refuses another.",
            "torchrun --nproc_per_node=8 -m urepa.generate ... divides the images among GPUs.",
        ),
    ),
    "generate_checkpoint": Command(
        "urepa.generate",
        "makes images of published weights, without a run",
        command_schemas.GenerateCheckpoint,
        ("checkpoint=FILE +experiment=NAME [GROUP=NAME...] [KEY=VALUE...]",),
        (
            (
                "checkpoint=FILE +experiment=repa_imagenet256 steps=250 sampler=sde guidance=1.8",
                "a SiT in the published layout (.safetensors, .pt)",
            ),
            (
                "checkpoint=FOLDER +experiment=track_a guidance=4 against=base",
                "a LoRA for diffusers' pipelines, or a U-Net's folder",
            ),
            ("checkpoint=OWNER/NAME@REVISION/FILE +experiment=repa_imagenet256", "a file on the hub"),
        ),
        (
            "The experiment gives the backbone, the objective and the track (latents, classes, VAE, prompts) that the "
            "weights were trained with. Neither images, caches nor a teacher are needed.",
            f"{AGAIN} A folder holds one request and refuses another.",
        ),
        takes=("experiment", "backbone", "objective", "data"),
    ),
    "export": Command(
        "urepa.export",
        "writes a run's EMA weights as others load them, with its heads, its config and a model card",
        command_schemas.Export,
        ("run=FOLDER [format=kohya] [out=FOLDER] [KEY=VALUE...]",),
        (
            ("run=outputs/NAME/seed0", "into outputs/NAME/seed0/export/step_..."),
            ("run=outputs/NAME/seed0 format=kohya", "a LoRA for ComfyUI, WebUIs and sd-scripts"),
            ("-m 'run=glob(outputs/NAME/seed*)'", "several runs, each into its own folder"),
            ("run=outputs/NAME/seed0 push=OWNER/NAME", "also into a private repository on the Hugging Face hub"),
        ),
        ("A LoRA or a U-Net is written in diffusers' formats, a SiT in the layout of the published checkpoints.",),
    ),
    "look": Command(
        "urepa.look",
        "shows a run's tokens beside the teacher's, and samples, on fixed validation images, at any checkpoint",
        command_schemas.Look,
        ("run=FOLDER [step=N|all] [KEY=VALUE...]", "-m 'run=glob(PATTERN)' [KEY=VALUE...]"),
        (
            ("run=outputs/NAME/seed0", "the newest checkpoint, into outputs/NAME/seed0/look/"),
            ("run=outputs/NAME/seed0 step=all", "every checkpoint that is there, and a strip over the steps"),
            ("run=outputs/NAME/seed0 images=12 patch=[0.25,0.5]", "more images, similarities to another token"),
        ),
        ("`trainer.look_every=N` of urepa.train makes the same pictures during training.",),
    ),
    "tokenize": Command(
        "urepa.tokenize",
        "encodes images as integer codes with the tokenizer of a run",
        command_schemas.Tokenize,
        ("run=FOLDER images=DIR out=FILE [KEY=VALUE...]",),
        (("run=outputs/NAME/seed0 images=photos out=photos.safetensors", "a row of codes for each image of a folder"),),
    ),
    "detokenize": Command(
        "urepa.detokenize",
        "decodes images from codes with the tokenizer of a run",
        command_schemas.Detokenize,
        ("run=FOLDER codes=FILE out=DIR [KEY=VALUE...]",),
        (
            ("run=outputs/NAME/seed0 codes=photos.safetensors out=again", "from all codes of each image"),
            ("run=outputs/NAME/seed0 codes=photos.safetensors out=again_4 keep=4", "from its first four"),
        ),
    ),
    "compare": Command(
        "urepa.compare",
        "compares runs, arm by arm and seed by seed, from their folders or from MLflow",
        compare_schema.Compare,
        ("[KEY=VALUE...]",),
        (
            ("", "all runs below outputs/"),
            ("experiment=cifar10 baseline=loss.lambda_max=0,head.depth=2", "one experiment against a chosen arm"),
            ("store=sqlite:///mlflow.db ablation='lora*' publish=true", "from MLflow, and the report into it"),
            ("watch=true", "a page that follows a sweep"),
        ),
    ),
    "describe": Command(
        "urepa.describe",
        "writes the methodology section of an experiment, from its config and counts of its model",
        command_schemas.Describe,
        (f"{RUN} [out=FOLDER]",),
        (
            ("+experiment=track_a", "prints Markdown"),
            ("+experiment=track_a +ablation=lora_16 out=paper", "also writes methodology.md and methodology.tex"),
        ),
    ),
    "plan": Command(
        "urepa.plan",
        "predicts the cost of a run or a sweep before anything is built",
        command_schemas.Plan,
        (RUN, f"-m {RUN}"),
        (
            ("+experiment=track_a", "parameters, FLOP, memory, disk and hours of a run"),
            ("-m +experiment=track_a '+ablation=glob(lora_*)' seed=0,1,2", "a line for each run, and the total"),
            ("+experiment=track_a measured=bench.json", "expected hours, from a measurement"),
        ),
    ),
    "one_batch": Command(
        "urepa.one_batch",
        "makes one update of an experiment and prints shapes, devices, trainable parameters and losses; writes no run",
        command_schemas.OneBatch,
        (RUN,),
        (
            ("", "the quickstart's first update"),
            ("+experiment=flextok_smoke loss=flextok_first", "another tap: its shapes and gradients"),
        ),
        ("Needs the caches, as training does; a small track makes them.",),
    ),
    "bench": Command(
        "urepa.bench",
        "measures how long a training step of an experiment takes, over random data",
        command_schemas.Bench,
        (f"{RUN} [bench.KEY=VALUE...]",),
        (
            ("", "the quickstart's step"),
            ("+experiment=track_a backbone.weights=random out=bench.json", "without weights or caches, into a file"),
            ("+experiment=track_a bench.against=documented bench.parts=true", "next to the description's loop"),
            ("+experiment=repa_imagenet256 bench.against=online", "next to a step that runs the teacher"),
        ),
    ),
    "bench_reading": Command(
        "urepa.bench_reading",
        "measures how fast tokens and latents are read, compared with plain preadv and the description's loader",
        command_schemas.BenchReading,
        ("[KEY=VALUE...]",),
        (("", "the disk of this folder"), ("folder=DIR samples=8000 rounds=1 out=FILE", "another disk, into a file")),
    ),
    "ablation_grid": Command(
        "launchers.ablation_grid",
        "submits a whole study as dependent jobs: caches, their check, every arm with every seed, evaluation, "
        "comparison",
        command_schemas.AblationGrid,
        ("[+experiment=NAME] [KEY=VALUE...]", "study=NAME [KEY=VALUE...]"),
        (
            (
                "+experiment=track_a data.root=DIR cluster=slurm dry_run=true",
                "prints what would be submitted, and the hours",
            ),
            ("+experiment=track_a data.root=DIR cluster=slurm cluster.partition=gpu", "on SLURM"),
            ("+experiment=cifar10 arms=baseline,lambda_0 seeds=0,1 cluster.at_once=2", "on this machine"),
            ("study=which_choice data.source=folder data.images=DIR dry_run=true", "a study of conf/study"),
        ),
        (
            "All other keys are passed to the runs: `python -m urepa.train --help`. With --config-dir FOLDER the arms "
            "and studies of that folder are added to those of conf/; the jobs get the flag too.",
            "The same command again skips what is finished and submits what failed. Jobs run from a copy of the "
            "commit. `python -m launchers.status` shows where they are.",
        ),
    ),
    "status": Command(
        "launchers.status",
        "shows the jobs that were submitted from a working folder, with one line per job on its last submission",
        command_schemas.Status,
        ("[FOLDER] [--config-dir FOLDER]",),
        (("", "the jobs of this folder"), ("/scratch/study/outputs/.jobs", "those of another")),
        (
            "A line has the job's id, its state and its name. The lines below it have a run's step and last loss, the "
            "reason of a failure, and the log.",
        ),
        heading="Argument (FOLDER)",
    ),
    "write_captions": Command(
        "launchers.write_captions",
        "writes captions beside CIFAR-10's images, those of test images from templates that training images have not",
        command_schemas.WriteCaptions,
        ("FOLDER",),
        (("/data/cifar10", "the captions of its images, and all held-out prompts"),),
        ("The same images get the same captions. Captions that are there are not overwritten.",),
        heading="Argument (FOLDER)",
    ),
    "idx_images": Command(
        "launchers.idx_images",
        "writes the images of IDX files (MNIST, Fashion-MNIST, KMNIST) as PNG files in class folders",
        command_schemas.IdxImages,
        ("IMAGES LABELS FOLDER",),
        (
            (
                "train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz DIR/train",
                "training images as DIR/train/CLASS/*.png",
            ),
        ),
        ("The folder is written completely or not at all. One that exists is not overwritten.",),
        heading="Arguments (IMAGES LABELS FOLDER)",
    ),
}
