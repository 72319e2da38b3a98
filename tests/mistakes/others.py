"""Mistakes with the other commands: compare, plan, describe, the benches, preprocess, tokenizers, prefetch and the
launchers."""

from __future__ import annotations

from mistakes import Mistake, bound, in_content, of
from mistakes.parts import CONFIG, FILE, FOREIGN, RUN, SUMMARY, both, closed, write

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
        ("", f"{RUN}/config.yaml", "run", write(CONFIG, "a: [")),
        ("", f"{RUN}/summary.json", "run", write(SUMMARY, "{")),
    ),
    bound("urepa.compare", "", "report", "run", "."),
    bound("urepa.compare", "report=r out=d/x.json", "d/x.json", "run", "outputs"),
]

PLAN = [
    *of(
        "urepa.plan",
        ("foo=1", "no key 'foo'"),
        ("device=tpu", "device has no option 'tpu'; choose one of"),
        ("device=cpu device.memory_bytes=-1", "device.memory_bytes=-1.0: give 1 or more"),
        ("measured=nowhere", "measured=nowhere: there is no such file"),
        ("measured=", "measured="),
        ("measured=m.json", "m.json is damaged", "", write("m.json", "{")),
        ("measured=m.json", "measured=m.json does not hold the steps", "", write("m.json", "[1,2]")),
        ("measured=m.json", "measured=m.json does not hold the steps", "", write("m.json", '{"a": 3}')),
        ("measured=m.json", "measured=m.json does not hold the steps", "", write("m.json", '{"a": {"rows": [3]}}')),
        ("measured=m.json", "measured=m.json does not hold the steps", "", write("m.json", '{"a": {"rows": 3}}')),
        ("measured=m.json", "m.json holds a JSON str", "", write("m.json", '"x"')),
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
    ),
    Mistake("urepa.plan", "out=d/x.json", "out=d/x.json", "", both(write("d/x", ""), closed("d")), True),
]

DESCRIBE = [
    *of(
        "urepa.describe",
        ("foo=1", "no key 'foo'"),
        ("+experiment=foo", "experiment has no option 'foo'"),
        ("-m seed=0,1", "describe writes about one run: leave -m out"),
        ("measured=nowhere", "measured=nowhere: there is no such file"),
        ("measured=m.json", "measured=m.json does not hold the steps", "", write("m.json", "[1,2]")),
        ("out=file", "out=file", "", FILE),
        ("out=file/x", "out=file/x", "", FILE),
        ("out=", "out="),
        ("data=folder", "data.images"),
        ("trainer.max_steps=0", "trainer.max_steps=0: give 1 or more"),
    ),
    Mistake("urepa.describe", "out=d/x", "out=d/x", "", both(write("d/x.txt", ""), closed("d")), True),
]

BENCH = (
    of(
        "urepa.bench",
        ("foo=1", "no key 'foo'"),
        ("bench.steps=0", "bench.steps=0: give 1 or more"),
        ("bench.against=foo", "bench.against=foo: .*documented, online"),
        (
            "bench.against=online loss=none",
            "bench.against=online runs the teacher in every step, and this loss has none",
        ),
        ("bench.folder=nowhere", "bench.folder=nowhere"),
        ("bench.folder=file", "bench.folder=file", "", FILE),
        ("bench.folder=", "bench.folder="),
        ("out=nowhere/x.json", "out=nowhere/x.json"),
        ("out=there", "out=there", "", write("there/x", "")),
        ("out=", "out="),
        ("+experiment=cifar", "experiment has no option 'cifar'"),
    )
    + of(
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
    )
    + [
        Mistake("urepa.bench", "", "bench.folder=.", "", both(write("x", ""), closed(".")), True),
        Mistake("urepa.bench_reading", "", "folder=.", "", both(write("x", ""), closed(".")), True),
    ]
)

A = "data=track_a data.train_images=4 data.val_images=4"

PREPROCESS = [
    *of(
        "urepa.preprocess",
        ("foo=1", "no key 'foo'"),
        ("data=digit", "did you mean 'digits'"),
        ("data.limt=3", "did you mean 'data.limit'"),
        ("teacher=dino", "teacher has no option 'dino'"),
        ("stage=foo", "stage=foo: give one of all, manifest"),
        ("stage=images", "data=digits is built without stages: leave out stage and shard"),
        ("shard=1/2", "data=digits is built without stages"),
        ("shard=2/2", "shard=2/2: give i/n with i from 0 to n-1"),
        ("shard=x", "shard=x: give i/n"),
        ("batch_size=0", "batch_size=0: give 1 or more"),
        ("data.root=file", "file", "", FILE),
        ("data.root=", "data.root="),
        ("data.limit=100000", "data.limit=.* asks for 10000 images of one class"),
        ("data=folder", "data.images"),
        ("data=folder data.num_classes=3 data.images=nowhere", "data.images=nowhere"),
        (
            "data=folder data.num_classes=4 data.images=images",
            "the images have 3 classes; data.num_classes=4",
            "images",
        ),
        (
            "data=folder data.num_classes=2 data.images=images",
            "the images have 3 classes; data.num_classes=2",
            "images",
        ),
        (f"{A} data.images=nowhere", "data.images=nowhere"),
        (f"{A} data.images=images data.root=file data.num_classes=3", "file", "images", FILE),
        (f"{A} stage=images", "run the stage .manifest. first"),
        (f"{A} stage=latents", "data.vae|run the stage"),
        (f"{A} stage=adopt", "there is no"),
        (f"{A} stage=digest", "is not a finished cache"),
        (f"{A} stage=verify", "there is no cache at"),
        (f"{A} stage=prompts data.class_names=nowhere", "data.class_names=nowhere"),
    ),
    *in_content(  # or in how many files there are
        of(
            "urepa.preprocess",
            (
                "data=folder data.num_classes=3 data.images=images data.validation_images=1000 data.test_images=3",
                "data.validation_images=.* asks for",
                "images",
            ),
            (f"{A} data.images=images", "data.", "images"),
        )
    ),
    Mistake("urepa.preprocess", "data.root=d/e", "d/e", "", both(write("d/x", ""), closed("d")), True),
]

CLASSIFIER = [
    *of(
        "urepa.train_classifier",
        ("foo=1", "no key 'foo'"),
        ("epochs=0", "epochs=0: give 1 or more"),
        ("seed=-1", "seed=-1: give 0 or more"),
        ("data=track_a", "data=track_a is a latent track"),
        ("teacher=dinov2_b", "teacher has no effect here"),
        ("data=digit", "did you mean 'digits'"),
        ("data.source=folder data.images=nowhere", "data.images=nowhere"),
        ("data=digits data.limit=100000", "data.limit=.* asks for 10000 images of one class"),
        ("data=digits data.root=file", "file", "", FILE),
        ("data=digits out=nowhere/x", "out=nowhere/x cannot be written"),
        ("data=digits out=file/x", "out=file/x", "", FILE),
        ("data=digits out=", "out= is empty"),
        ("data=digits out=there", "out=there is a folder", "", write("there/x", "")),
        ("data=digits out=file", "file is not a complete safetensors file", "", FILE),
    ),
    Mistake(
        "urepa.train_classifier", "data=digits data.root=d/e", "d/e", "", both(write("d/x", ""), closed("d")), True
    ),
]

ENCODER = of(
    "urepa.train_encoder",
    ("foo=1", "no key 'foo'"),
    ("epochs=0", "epochs=0: give 1 or more"),
    ("mask_ratio=1.5", "mask_ratio=1.5: give 0 or more, at most 1"),
    ("learning_rate=0", "learning_rate=0"),
    ("data=track_a", "data=track_a is a latent track"),
    ("teacher=dinov2_b", "teacher has no effect here"),
    ("data=digits data.image_size=16 patch_size=3", "patch_size=3 does not divide the images' side of 16"),
    ("data=digits width=100", "width=100: give a multiple of 64"),
    ("data=digits mask_ratio=0", "mask_ratio=0 leaves .* patches visible"),
    ("data=digits out=nowhere/x", "out=nowhere/x cannot be written"),
    ("data=digits out=file", "file is not a complete safetensors file", "", FILE),
)

TOKENIZERS = [
    *of(
        "urepa.tokenize",
        ("", "say which run: python -m urepa.tokenize run="),
        ("foo=1", "no key 'foo'"),
        ("run=nowhere images=. out=x.safetensors", "nowhere"),
        (f"run={RUN} images=nowhere out=x.safetensors", "trained a U-Net, which has no codes", "run"),
        ("run=x images=. out=x batch_size=0", "batch_size=0: give 1 or more"),
    ),
    *of(
        "urepa.detokenize",
        ("run=x", "say which codes: python -m urepa.detokenize run="),
        ("run=x codes=y out=z keep=0", "keep=0: give 1 or more"),
        (f"run={RUN} codes=x out=y", "trained a U-Net, which has no codes", "run"),
    ),
]

PREFETCH = [
    *of(
        "urepa.prefetch",
        ("foo=1", "no key 'foo'"),
        ("+experiment=foo", "experiment has no option 'foo'"),
        ("experiment=cifar10", "write it with a plus"),
        ("", "prefetch.json", "", write("prefetch.json", "{")),
    ),
]

LAUNCHERS = [
    *of(
        "launchers.status",
        ("", "no job was submitted from here"),
        ("nowhere", "there is no nowhere/jobs.jsonl"),
        ("file", "file", "", FILE),
        ("a b", "takes one folder of jobs"),
        ("foo=1", "takes one folder of jobs"),
    ),
    *of(
        "launchers.ablation_grid",
        ("seed=1", "seed: a study gives it to its runs"),
        ("ablation=lambda_0", "ablation: a study gives it to its runs"),
        ("foo=1", "no key 'foo'"),
        ("arms=lamda_0", "ablation has no option 'lamda_0'"),
        ("study=which_choise", "study has no option 'which_choise'; choose one of: .*did you mean 'which_choice'"),
        ("study=which_choice arms=controll", "arms: study=which_choice has no arm 'controll'.*did you mean 'control'"),
        ("study=which_choice 'arms=[]'", "there is no arm to run: give arms=a,b,c of the study"),
        ("study=which_choice seed=1", "seed: a study gives it to its runs"),
        ("'arms=[]'", "there is no arm to run"),
        ("arms=lambda_0 seeds=-1", "seeds=\\[-1\\]: give 0 or more"),
        ("arms=lambda_0 stages=foo", "stages: there is no foo; choose of"),
        ("arms=lambda_0 cluster=foo", "cluster has no option 'foo'"),
        ("arms=lambda_0 cluster.foo=1", "no key 'cluster.foo'"),
        ("arms=lambda_0 cluster.at_once=0 dry_run=true", "at_once=0"),
        (
            "arms=lambda_0 cluster=slurm cluster.gpus=9 trainer.batch_size=72 dry_run=true",
            "cluster.gpus=9: give 1 or more, at most 8",
        ),
        ("arms=lambda_0 evaluate=foo dry_run=true", "evaluat.*foo"),
        ("arms=lambda_0 dry_run=true measured=nowhere", "measured=nowhere: there is no such file"),
        ("arms=lambda_0 dry_run=true scripts=file", "scripts=file", "", FILE),
        ("arms=lambda_0 dry_run=true scripts=", "scripts="),
        ("arms=lora_16 +experiment=cifar10", "is for the backbone sd15"),
        ("-m arms=lambda_0", "-m"),
    ),
]

ALL = [*COMPARE, *PLAN, *DESCRIBE, *BENCH, *PREPROCESS, *CLASSIFIER, *ENCODER, *TOKENIZERS, *PREFETCH, *LAUNCHERS]
