"""Of every command that reads or writes: paths that are wrong or cannot be written, and files that are damaged."""

from __future__ import annotations

import pickle
from pathlib import Path

from mistakes import Mistake, of, tiny
from mistakes.parts import HERE, RUN, STORE, both, closed, cut, edit, remove, write

CONFIG, SUMMARY, STEP = f"{RUN}/config.yaml", f"{RUN}/summary.json", f"{RUN}/checkpoints/step_00000002"
FILE = write("file", "x")
PICKLE = pickle.dumps({"x": Path("x")})
FOREIGN = "model:\n  name: resnet\nepochs: 3\n"
TOKENS = f"{STORE}/tokens_*"
MEASURED = write("measured.json", "[1, 2]")
AGAIN = "--again--"


def again(*rows: tuple) -> list[Mistake]:
    """The tiny run's own command, on a change of what lies there."""
    return [
        Mistake(m.command, f"{m.typed} {HERE}", m.says, "caches run", m.change, m.bound) for m in tiny(*rows)
    ]


def bound(command: str, typed: str, says: str, beside: str, shut: str) -> Mistake:
    """In a folder that may not be written."""
    return Mistake(command, typed, says, beside, closed(shut), bound=True)


def on_a_run(command: str, more: str = "") -> list[Mistake]:
    """What every command that takes run= says of a folder that is no whole run's."""
    return of(
        command,
        ("run=nowhere", "run=nowhere is not a run's folder"),
        ("run=file", "run=file is not a run's folder", "", FILE),
        ("run=", "run="),
        ("run=.", "run=. is not a run's folder"),
        (f"run={RUN} foo=1", "no key 'foo'", "run"),
        (f"run={RUN} +foo=1", "no key 'foo'", "run"),
        (f"run={RUN} {more}", f"{CONFIG}.*damaged", "run", write(CONFIG, "a: [")),
        (f"run={RUN} {more}", f"{CONFIG}.*not the config of a run", "run", write(CONFIG, "")),
        (f"run={RUN} {more}", f"{CONFIG}.*not the config of a run", "run", write(CONFIG, FOREIGN)),
        (f"run={RUN} {more}", f"{CONFIG}", "run", write(CONFIG, b"\x00\xff\xfe")),
        (f"run={RUN} {more}", "no valid checkpoint", "run", remove(f"{RUN}/checkpoints")),
        (f"run={RUN} {more}", "no valid checkpoint", "run", cut(f"{STEP}/ema.safetensors", 100)),
        (f"run={RUN} {more}", "no valid checkpoint", "run", write(f"{STEP}/ema.safetensors", PICKLE)),
        (f"run={RUN} {more}", "no valid checkpoint", "run", write(f"{STEP}/state.json", "[]")),
    )


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
        ("", f"{RUN}/provenance.json", write(f"{RUN}/provenance.json", "{}")),
        ("", f"{RUN}/metrics.jsonl|is not what it was", both(remove(SUMMARY), write(f"{RUN}/metrics.jsonl", "{}\n"))),
        ("", "train.csv", write(f"{STORE}/train.csv", "a,b\n1,2\n")),
        ("", "val.csv", remove(f"{STORE}/val.csv")),
        ("", "latents/manifest.json", write(f"{STORE}/latents/manifest.json", "{")),
        ("", "latents/manifest.json", write(f"{STORE}/latents/manifest.json", "[]")),
        ("", "data.mdb", both(remove(SUMMARY), cut(f"{STORE}/latents/data.mdb", 9000))),
        ("", "data.mdb", write(f"{STORE}/latents/data.mdb", b"x" * 20000)),
        ("", "data.mdb", remove(f"{STORE}/latents/data.mdb")),
        ("", "digests.npy", write(f"{STORE}/latents/digests.npy", "x")),
        ("", "mean_token.npy", write(f"{TOKENS}/mean_token.npy", "x")),
        (
            "",
            "mean_token.npy",
            both(
                remove(SUMMARY),
                write(f"{TOKENS}/mean_token.npy", "x"),
                edit(f"{TOKENS}/manifest.json", mean_token_sha256=None),
            ),
        ),
        (
            "",
            "mean_token.npy",
            both(
                remove(SUMMARY),
                write(f"{TOKENS}/mean_token.npy", PICKLE),
                edit(f"{TOKENS}/manifest.json", mean_token_sha256=None),
            ),
        ),
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
        ("data=cifar10_pixels data.root=d data.source=cifar_binary data.images=.", "lacks train.bin"),
        (
            "data=cifar10_pixels data.root=d data.source=cifar_binary data.images=.",
            "data_batch_1.bin is cut short",
            write("data_batch_1.bin", b"x" * 4000),
        ),
        (
            "data=cifar10_pixels data.root=d data.source=parquet data.images=.",
            "parquet",
            both(write("train.parquet", "x"), write("test.parquet", "x")),
        ),
        ("warm_start=outputs", "outputs has no valid checkpoint", write("outputs/x", "")),
    ),
    *of(
        "urepa.train",
        (f"resume={RUN} trainer.max_steps=1", "before the end of that run", "caches run"),
        (f"resume={RUN} trainer.max_steps=4 loss.lambda_max=1", "takes trainer.max_steps=N alone", "caches run"),
        (f"resume={RUN} trainer.max_steps=4", "no valid checkpoint", "caches run", remove(f"{RUN}/checkpoints")),
        (f"resume={RUN} trainer.max_steps=4", CONFIG, "caches run", write(CONFIG, "{")),
        (f"resume={RUN} trainer.max_steps=4", SUMMARY, "caches run", write(SUMMARY, "{")),
        (f"resume={RUN}/checkpoints trainer.max_steps=4", "is not a run's folder", "caches run"),
        ("hydra.run.dir=", "hydra.run.dir"),
        ("", "outputs", "", write("outputs", "x")),
        ("hydra.run.dir=file/x", "file", "", FILE),
    ),
    bound("urepa.train", "tracking=none", "outputs: Permission denied|may read and write", "images", "."),
    Mistake("urepa.train", "data.root=d/e tracking=none", "d/e", "", both(write("d/x", ""), closed("d")), True),
    bound("urepa.train", f"resume={RUN} trainer.max_steps=4", RUN, "caches run", "outputs"),
]

SIT = "backbone=sit_tiny objective=flow head=repa_mlp_small loss=repa_tiny teacher.grid=[4,4] backbone.patch=2"
WEIGHTS = tiny(
    (f"{SIT} backbone.weights=nowhere", "backbone.weights=nowhere is not there"),
    (f"{SIT} backbone.weights=w.pt", "more than tensors", write("w.pt", PICKLE)),
    (f"{SIT} backbone.weights=w.pt", "no whole torch file|no weights at all", write("w.pt", "x")),
    (f"{SIT} backbone.weights=w.safetensors", "no whole safetensors file", write("w.safetensors", PICKLE)),
    (f"{SIT} backbone.weights=w.safetensors", "no whole safetensors file", write("w.safetensors", "")),
    (f"{SIT} backbone.weights=", "backbone.weights"),
    (f"{SIT} backbone.weights=.", "has no model.safetensors"),
    ("teacher=dinov2_l teacher.model=t.pth teacher.image_size=56", "teacher.model=t.pth", write("t.pth", PICKLE)),
    ("teacher=dinov2_l teacher.model=t.pth teacher.image_size=56", "teacher.model=t.pth does not exist"),
    ("teacher=dinov2_l teacher.model=t teacher.image_size=56", "teacher.model=t", write("t/config.json", "{")),
    ("teacher=dinov2_l teacher.model=t teacher.image_size=56", "teacher.model=t", write("t/x", "")),
    ("backbone=sd15 backbone.weights=random backbone.prompts=p.pt", "no prompt embeddings at p.pt"),
    ("backbone=sd15 backbone.weights=random backbone.prompts=p.pt", "p.pt", write("p.pt", PICKLE)),
    ("backbone=sd15 backbone.weights=random backbone.prompts=p.pt", "p.pt", write("p.pt", "x")),
)

EVALUATE = [
    *of(
        "urepa.evaluate",
        ("", "say which run"),
        ("foo=1", "no key 'foo'"),
        ("runn=x", "did you mean 'run'"),
        (f"run={RUN}", "was trained with evaluation=none: choose some", "caches run"),
        (f"run={RUN} evaluation=knnn", "did you mean 'knn'", "caches run"),
        (f"run={RUN} 'evaluation=[knnn]'", "did you mean 'knn'", "caches run"),
        (f"run={RUN} 'evaluation=[]'", "evaluation=\\[\\]", "caches run"),
        (f"run={RUN} evaluation=none", "choose some", "caches run"),
        (f"run={RUN} evaluation=knn evaluation.knn.k=0", "evaluation.knn.k=0: give 1 or more", "caches run"),
        (f"run={RUN} evaluation=knn evaluation.knn.kk=3", "did you mean 'evaluation.knn.k'", "caches run"),
        (f"run={RUN} evaluation=knn evaluation.knn.timestep=2000", "evaluation.knn.timestep=2000", "caches run"),
        (f"run={RUN} evaluation=knn evaluation.knn.tap=middle", "no tap 'middle'", "caches run"),
        (f"run={RUN} evaluation=knn data.root=nowhere", "no cache at nowhere", "caches run"),
        (f"run={RUN} evaluation=knn data.root=file", "file", "caches run", FILE),
        (f"run={RUN} evaluation=knn data.root=", "data.root", "caches run"),
        (f"run={RUN} evaluation=knn", "no cache at", "run"),
        (f"run={RUN} evaluation=knn", SUMMARY, "caches run", write(SUMMARY, "{")),
        (f"run={RUN} evaluation=knn", "is not finished", "caches run", remove(SUMMARY)),
        (f"run={RUN} evaluation=knn", SUMMARY, "caches run", edit(SUMMARY, step=None)),
        (f"run={RUN} evaluation=knn", SUMMARY, "caches run", edit(SUMMARY, metrics=None)),
        (f"run={RUN} evaluation=knn", "is damaged", "caches run", write(f"{RUN}/metrics.jsonl", "x\ny\n")),
        (
            f"run={RUN} evaluation=knn tracking=mlflow",
            f"{RUN}/mlflow.json",
            "caches run",
            write(f"{RUN}/mlflow.json", "{"),
        ),
        (f"run={RUN} evaluation=knn tracking=wandb", "tracking has no option 'wandb'", "caches run"),
        (f"run={RUN} evaluation=knn trainer.max_steps=3", "no key 'trainer", "caches run"),
        (f"-m run={RUN} evaluation=knn,alignment", "-m", "caches run"),
        (f"run={RUN} evaluation=samples", "evaluation has no option 'samples'", "caches run"),
    ),
    *on_a_run("urepa.evaluate", "evaluation=knn"),
    bound("urepa.evaluate", f"run={RUN} evaluation=knn", f"{RUN}", "caches run", "outputs"),
]

GENERATE = [
    *of(
        "urepa.generate",
        ("", "say which run or checkpoint"),
        ("foo=1", "no key 'foo'"),
        (f"run={RUN} 'classes=[99]'", "there is no class 99; this run's are 0 to 9", "run"),
        (f"run={RUN} 'classes=[-1]'", "there is no class -1", "run"),
        (f"run={RUN} 'classes=[]'", "classes=\\[\\]: give at least one", "run"),
        (f"run={RUN} n=0", "n=0: give 1 or more", "run"),
        (f"run={RUN} n=many", "n=many", "run"),
        (f"run={RUN} steps=0", "steps=0: give 1 or more", "run"),
        (f"run={RUN} steps=2000", "steps=2000: this run has 1000 timesteps", "run"),
        (f"run={RUN} sampler=foo", "sampler=foo: .*ddim", "run"),
        (f"run={RUN} sampler=heun steps=2 n=1", "sampler=heun", "run"),
        (f"run={RUN} guidance=-1", "guidance=-1.0: give 0 or more", "run"),
        (f"run={RUN} guidance=nan", "guidance=nan", "run"),
        (f"run={RUN} 'guidance_interval=[0.2]'", "guidance_interval=\\[0.2\\]: give two times", "run"),
        (f"run={RUN} 'guidance_interval=[0.5,0.2]'", "the lower one first", "run"),
        (f"run={RUN} 'guidance_interval=[0,0.7]'", "guidance_interval has no effect on this run", "run"),
        (f"run={RUN} against=base", "against=base", "run"),
        (f"run={RUN} against=foo", "against=foo: .*base", "run"),
        (f"run={RUN} seed=-1", "seed=-1: give 0 or more", "run"),
        (f"run={RUN} batch_size=0", "batch_size=0: give 1 or more", "run"),
        (f"run={RUN} precision=fp16", "precision=fp16: .*fp32, bf16", "run"),
        (f"run={RUN} data.vae=x", "data.vae has no effect", "run"),
        (f"run={RUN} +experiment=cifar10", "experiment= says what published weights are of", "run"),
        (f"run={RUN} n=1 steps=1 out=file", "out=file", "run", FILE),
        (f"run={RUN} n=1 steps=1 out=file/x", "out=file/x", "run", FILE),
        (f"run={RUN} n=1 steps=1 out=", "out=", "run"),
        (f"run={RUN} n=1 steps=1 out=o", "o holds other images", "run", write("o/request.json", '{"n": 7}')),
        (f"run={RUN} n=1 steps=1 out=o", "o/request.json", "run", write("o/request.json", "{")),
        (f"-m run={RUN} n=1,2", "-m", "run"),
        (f"run={RUN} checkpoint=exported", "run= and checkpoint= are two models", "run export"),
        ("checkpoint=nowhere", "checkpoint=nowhere is not there"),
        ("checkpoint=", "checkpoint="),
        ("checkpoint=w.safetensors", "w.safetensors has no embedding.safetensors", "", write("w.safetensors", "x")),
        (
            "checkpoint=w.safetensors +experiment=repa_cifar10_pixels n=1 steps=1",
            "no whole safetensors file",
            "",
            write("w.safetensors", "x"),
        ),
        (
            "checkpoint=w.pt +experiment=repa_cifar10_pixels n=1 steps=1",
            "more than tensors",
            "",
            write("w.pt", PICKLE),
        ),
        ("checkpoint=exported n=1 steps=1", "do not fit", "export"),
        (
            "checkpoint=exported n=1 steps=1",
            "scheduler_config.json",
            "export",
            write("exported/scheduler/scheduler_config.json", "{"),
        ),
        (
            "checkpoint=exported n=1 steps=1",
            "exported/embedding.safetensors",
            "export",
            write("exported/embedding.safetensors", PICKLE),
        ),
        (
            "checkpoint=exported n=1 steps=1",
            "exported/unet",
            "export",
            cut("exported/unet/*.safetensors", 1000),
        ),
        ("checkpoint=exported n=1 steps=1 objective=flow", "prediction_type v_prediction, here flow", "export"),
        ("checkpoint=exported +experiment=repa_cifar10_pixels", "no model.safetensors", "export"),
        ("checkpoint=exported optimizer.lr.backbone=1e-3", "optimizer.lr.backbone has no effect", "export"),
        ("checkpoint=exported against=base n=1 steps=1", "against=base", "export"),
        ("checkpoint=exported +experiment=foo", "experiment has no option 'foo'", "export"),
    ),
    *on_a_run("urepa.generate", "n=1 steps=1"),
    bound("urepa.generate", f"run={RUN} n=1 steps=1", RUN, "run", "outputs"),
    bound("urepa.generate", f"run={RUN} n=1 steps=1 out=new", "new", "run", "."),
]

EXPORT = [
    *of(
        "urepa.export",
        ("", "say which run"),
        ("foo=1", "no key 'foo'"),
        (f"run={RUN} out=there", "there is there already", "run", write("there/x", "")),
        (f"run={RUN} out=file", "file is there already", "run", FILE),
        (f"run={RUN} out=file/x", "out=file/x", "run", FILE),
        (f"run={RUN} out=", "out=", "run"),
        (f"run={RUN} data.vae=x", "data.vae has no effect", "run"),
        (f"run={RUN} backbone.weights=x", "backbone.weights has no effect", "run"),
        (f"-m run={RUN} out=a,b", "-m", "run"),
    ),
    *on_a_run("urepa.export"),
    bound("urepa.export", f"run={RUN}", RUN, "run", "outputs"),
    bound("urepa.export", f"run={RUN} out=new", "new", "run", "."),
]

COMPARE = [
    *of(
        "urepa.compare",
        ("", "there are no runs in outputs"),
        ("foo=1", "no key 'foo'"),
        ("reports=x", "did you mean 'report'"),
        ("runs=nowhere", "there are no runs in nowhere"),
        ("runs=", "runs="),
        ("runs=file", "there are no runs in file", "", FILE),
        ("runs=null", "runs="),
        ("", "there are no runs in outputs, but 1 other config.yaml", "", write("outputs/x/config.yaml", FOREIGN)),
        ("store=sqlite:///nowhere.db", "there is no MLflow store at nowhere.db"),
        ("store=", "store="),
        ("store=sqlite:///nowhere.db runs=x", "store= and runs= are two sources"),
        ("publish=true", "publish=true .* give store=URI", "run"),
        ("baseline=foo", "baseline=foo", "run"),
        ("baseline=loss.lambda_max=9", "baseline=loss.lambda_max=9", "run"),
        ("experiment=foo", "foo", "run"),
        ("ablation=foo", "foo", "run"),
        ("tag=foo", "tag=foo", "run"),
        ("tag=a=b", "a=b", "run"),
        ("ids=nowhere", "nowhere", "run"),
        ("report=file", "report=file", "run", FILE),
        ("report=file/x", "report=file/x", "run", FILE),
        ("report=", "report=", "run"),
        ("out=file/x", "out=file/x", "run", FILE),
        ("out=nowhere/x.json", "out=nowhere/x.json", "run"),
        ("out=outputs", "out=outputs", "run"),
        ("out=", "out=", "run"),
        ("publish=maybe", "publish=maybe", "run"),
        ("order=x", "order=x", "run"),
        ("-m report=a,b", "-m", "run"),
        ("", f"{RUN}/config.yaml", "run", write(CONFIG, "a: [")),
        ("", f"{RUN}/summary.json", "run", write(SUMMARY, "{")),
    ),
    bound("urepa.compare", "", "report", "run", "."),
    bound("urepa.compare", "report=r out=d/x.json", "d/x.json", "run", "outputs"),
]

PLAN = of(
    "urepa.plan",
    ("foo=1", "no key 'foo'"),
    ("loss.lambdamax=1", "did you mean 'loss.lambda_max'"),
    ("device=tpu", "device has no option 'tpu'; choose one of"),
    ("device=cpu device.memory_bytes=-1", "device.memory_bytes=-1.0: give 1 or more"),
    ("measured=nowhere", "measured=nowhere: there is no such file"),
    ("measured=", "measured="),
    ("measured=m.json", "m.json is damaged", "", write("m.json", "{")),
    ("measured=m.json", "measured=m.json does not hold the steps", "", write("m.json", "[1,2]")),
    ("measured=m.json", "measured=m.json does not hold the steps", "", write("m.json", '{"a": 3}')),
    ("measured=m.json", "measured=m.json does not hold the steps", "", write("m.json", '{"a": {"rows": [3]}}')),
    ("measured=m.json", "m.json", "", write("m.json", '"x"')),
    (
        "measured=m.json",
        "measured=m.json does not hold the steps",
        "",
        write(
            "m.json",
            '[{"path":1,"device":1,"batch_size":"a","step_s":null,"tflops_per_s":[],"peak_memory_bytes":{},'
            '"saved_bytes_per_sample":"x"}]',
        ),
    ),
    ("out=nowhere/x.json", "out=nowhere/x.json"),
    ("out=there", "out=there", "", write("there/x", "")),
    ("out=", "out="),
    ("out=file/x", "out=file/x", "", FILE),
    ("trainer.batch_size=5000", "trainer.batch_size=5000 is more than"),
    ("data=folder", "data.images"),
    ("data=folder data.images=nowhere data.num_classes=3", "data.images=nowhere"),
    ("backbone.head_dim=1000", "head_dim=1000"),
    ("-m seed=0,1 out=nowhere/x.json", "out=nowhere/x.json"),
    ("-m seed=0,1 trainer.batch_size=0", "trainer.batch_size=0"),
) + [
    Mistake("urepa.plan", "out=d/x.json", "out=d/x.json", "", both(write("d/x", ""), closed("d")), True),
]

DESCRIBE = of(
    "urepa.describe",
    ("foo=1", "no key 'foo'"),
    ("+experiment=foo", "experiment has no option 'foo'"),
    ("-m seed=0,1", "describe writes about one run: leave -m out"),
    ("measured=nowhere", "measured=nowhere: there is no such file"),
    ("measured=m.json", "measured=m.json does not hold the steps", "", write("m.json", "[1,2]")),
    ("out=file", "out=file", "", FILE),
    ("out=file/x", "out=file/x", "", FILE),
    ("out=", "out="),
    ("warm_start=nowhere", "nowhere has no valid checkpoint"),
    ("data=folder", "data.images"),
    ("trainer.max_steps=0", "trainer.max_steps=0: give 1 or more"),
) + [
    Mistake("urepa.describe", "out=d/x", "out=d/x", "", both(write("d/x.txt", ""), closed("d")), True),
]

BENCH = of(
    "urepa.bench",
    ("foo=1", "no key 'foo'"),
    ("bench.stepps=1", "did you mean 'bench.steps'"),
    ("bench.steps=0", "bench.steps=0: give 1 or more"),
    ("bench.against=foo", "bench.against=foo: .*documented"),
    ("bench.folder=nowhere", "bench.folder=nowhere"),
    ("bench.folder=file", "bench.folder=file", "", FILE),
    ("bench.folder=", "bench.folder="),
    ("out=nowhere/x.json", "out=nowhere/x.json"),
    ("out=there", "out=there", "", write("there/x", "")),
    ("out=", "out="),
    ("+experiment=cifar", "experiment has no option 'cifar'"),
    ("-m seed=0,1", "-m"),
) + of(
    "urepa.bench_reading",
    ("foo=1", "no key 'foo'"),
    ("samples=0", "samples=0: give 1 or more"),
    ("samples=10 batch_size=128", "batch_size=128"),
    ("rounds=0", "rounds=0: give 1 or more"),
    ("workers=2000", "workers=2000: give 1 or more, at most 1,024"),
    ("folder=nowhere", "folder=nowhere"),
    ("folder=file", "folder=file", "", FILE),
    ("folder=", "folder="),
    ("out=nowhere/x.json", "out=nowhere/x.json"),
    ("out=", "out="),
) + [
    Mistake("urepa.bench", "", "bench.folder=.", "", both(write("x", ""), closed(".")), True),
    Mistake("urepa.bench_reading", "", "folder=.", "", both(write("x", ""), closed(".")), True),
]

A = "data=track_a data.train_images=4 data.val_images=4"
PREPROCESS = of(
    "urepa.preprocess",
    ("foo=1", "no key 'foo'"),
    ("data=digit", "did you mean 'digits'"),
    ("data.limt=3", "did you mean 'data.limit'"),
    ("teacher=dino", "teacher has no option 'dino'"),
    ("stage=foo", "stage=foo: .*all, manifest"),
    ("stage=images", "data=digits is built in one go: leave stage and shard out"),
    ("shard=1/2", "data=digits is built in one go"),
    ("shard=2/2", "shard=2/2: give i/n with i from 0 to n-1"),
    ("shard=x", "shard=x: give i/n"),
    ("batch_size=0", "batch_size=0: give 1 or more"),
    ("data.root=file", "file", "", FILE),
    ("data.root=", "data.root="),
    ("data.limit=100000", "data.limit asks for 10000 images of one class"),
    ("data=folder", "data.images"),
    ("data=folder data.num_classes=3 data.images=nowhere", "data.images=nowhere"),
    ("data=folder data.num_classes=4 data.images=images", "the images have 3 classes; data.num_classes=4", "images"),
    ("data=folder data.num_classes=2 data.images=images", "the images have a class 2; data.num_classes=2", "images"),
    (
        "data=folder data.num_classes=3 data.images=images data.validation_images=1000",
        "data.validation_images asks for",
        "images",
    ),
    (f"{A} data.images=nowhere", "data.images=nowhere"),
    (f"{A} data.images=images", "data.", "images"),
    (f"{A} data.images=images data.root=file data.num_classes=3", "file", "images", FILE),
    (f"{A} stage=images", "run the stage .manifest. first"),
    (f"{A} stage=latents", "data.vae|run the stage"),
    (f"{A} stage=adopt", "there is no"),
    (f"{A} stage=digest", "is no finished cache"),
    (f"{A} stage=verify", "there is no cache at"),
    (f"{A} stage=prompts data.class_names=nowhere", "data.class_names=nowhere"),
    ("-m data.limit=10,20", "-m"),
) + [
    Mistake("urepa.preprocess", "data.root=d/e", "d/e", "", both(write("d/x", ""), closed("d")), True),
]

PREFETCH = of(
    "urepa.prefetch",
    ("foo=1", "no key 'foo'"),
    ("+experiment=foo", "experiment has no option 'foo'"),
    ("experiment=cifar10", "write it with a plus"),
    ("", "prefetch.json", "", write("prefetch.json", "{")),
    ("data=folder", "data.images"),
) + [
]

LAUNCHERS = of(
    "launchers.status",
    ("", "no job was submitted from here"),
    ("nowhere", "there is no nowhere/jobs.jsonl"),
    ("file", "file", "", FILE),
    ("a b", "status"),
    ("foo=1", "foo=1"),
) + of(
    "launchers.ablation_grid",
    ("seed=1", "seed: a study gives it to its runs"),
    ("ablation=lambda_0", "ablation: a study gives it to its runs"),
    ("foo=1", "no key 'foo'"),
    ("arms=lamda_0", "ablation has no option 'lamda_0'"),
    ("'arms=[]'", "there is no arm to run"),
    ("arms=lambda_0 'seeds=[]'", "there is no arm to run"),
    ("arms=lambda_0 seeds=a", "seeds"),
    ("arms=lambda_0 seeds=-1", "seeds=\\[-1\\]: give 0 or more"),
    ("arms=lambda_0 stages=foo", "stages: there is no foo; choose of"),
    ("arms=lambda_0 shards=0", "shards=0: give 1 or more"),
    ("arms=lambda_0 cluster=foo", "cluster has no option 'foo'"),
    ("arms=lambda_0 cluster.foo=1", "no key 'cluster.foo'"),
    ("arms=lambda_0 cluster.at_once=0 dry_run=true", "at_once=0"),
    ("arms=lambda_0 cluster=slurm cluster.gpus=9 dry_run=true", "gpus=9: a run takes 1 to 8"),
    ("arms=lambda_0 evaluate=foo dry_run=true", "evaluat.*foo"),
    ("arms=lambda_0 dry_run=true measured=nowhere", "measured=nowhere: there is no such file"),
    ("arms=lambda_0 dry_run=true scripts=file", "scripts=file", "", FILE),
    ("arms=lambda_0 dry_run=true scripts=", "scripts="),
    ("arms=lora_16 +experiment=cifar10", "is for the backbone sd15"),
    ("-m arms=lambda_0", "-m"),
    ("+ablation=lambda_0 +experiment=cifar10", "ablation: a study gives it to its runs"),
)

ALL = [
    *TRAIN,
    *WEIGHTS,
    *EVALUATE,
    *GENERATE,
    *EXPORT,
    *COMPARE,
    *PLAN,
    *DESCRIBE,
    *BENCH,
    *PREPROCESS,
    *PREFETCH,
    *LAUNCHERS,
]
