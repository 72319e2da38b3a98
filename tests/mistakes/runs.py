"""Mistakes with the commands that take run=: evaluate, generate and export."""

from __future__ import annotations

from mistakes import Mistake, bound, in_content, of
from mistakes.parts import CONFIG, FILE, FOREIGN, PICKLE, RUN, STEP, SUMMARY, cut, edit, remove, write


def on_a_run(command: str, more: str = "") -> list[Mistake]:
    """The message of every command that takes run= about a folder that is not a complete run's."""
    return of(
        command,
        ("run=nowhere", "run=nowhere does not exist"),
        ("run=file", "run=file is not a run's folder", "", FILE),
        ("run=", "run="),
        (f"run={RUN} +foo=1", "no key 'foo'", "run"),
        (f"run={RUN} {more}", f"{CONFIG}.*damaged", "run", write(CONFIG, "a: [")),
        (f"run={RUN} {more}", f"{CONFIG}.*not the config of a run", "run", write(CONFIG, FOREIGN)),
        (f"run={RUN} {more}", "no valid checkpoint", "run", remove(f"{RUN}/checkpoints")),
        (f"run={RUN} {more}", "no valid checkpoint", "run", write(f"{STEP}/ema.safetensors", PICKLE)),
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
        (f"run={RUN} evaluation=knn data.root=nowhere", "no cache at nowhere", "caches run"),
        (f"run={RUN} evaluation.generation.images.count=3", "choose one with evaluation=NAME", "caches run"),
        (f"run={RUN} +evaluation.dense=1", "choose one with evaluation=NAME", "caches run"),
        (f"run={RUN} ~evaluation evaluation.dense.tap=a", "choose one with evaluation=NAME", "caches run"),
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
        (f"run={RUN} evaluation=knn tracking=wandbb", "tracking has no option 'wandbb'", "caches run"),
        (f"run={RUN} evaluation=knn trainer.max_steps=3", "no key 'trainer", "caches run"),
        (f"run={RUN} evaluation=samples", "evaluation has no option 'samples'", "caches run"),
    ),
    *on_a_run("urepa.evaluate", "evaluation=knn"),
    *of(
        "urepa.evaluate",
        ("run=.", "run=. is not a run's folder"),
        (f"run={RUN} foo=1", "no key 'foo'", "run"),
        (f"run={RUN} evaluation=knn", f"{CONFIG}.*not the config of a run", "run", write(CONFIG, "")),
        (f"run={RUN} evaluation=knn", f"{CONFIG}", "run", write(CONFIG, b"\x00\xff\xfe")),
        (f"run={RUN} evaluation=knn", "no valid checkpoint", "run", cut(f"{STEP}/ema.safetensors", 100)),
        (f"run={RUN} evaluation=knn", "no valid checkpoint", "run", write(f"{STEP}/state.json", "[]")),
    ),
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
        (f"run={RUN} steps=0", "steps=0: give 1 or more", "run"),
        (f"run={RUN} steps=2000", "steps=2000: this run has 1000 timesteps", "run"),
        (f"run={RUN} sampler=foo", "sampler=foo: .*ddim", "run"),
        (f"run={RUN} sampler=heun steps=2 n=1", "sampler=heun", "run"),
        (f"run={RUN} guidance=-1", "guidance=-1.0: give 0 or more", "run"),
        (f"run={RUN} 'guidance_interval=[0.2]'", "guidance_interval=\\[0.2\\]: give two times", "run"),
        (f"run={RUN} 'guidance_interval=[0.5,0.2]'", "the lower one first", "run"),
        (f"run={RUN} 'guidance_interval=[0,0.7]'", "guidance_interval has no effect on this run", "run"),
        (f"run={RUN} against=base", "against=base", "run"),
        (f"run={RUN} against=foo", "against=foo: .*base", "run"),
        (f"run={RUN} data.vae=x", "data.vae has no effect", "run"),
        (f"run={RUN} +experiment=cifar10", "experiment= says what published weights are of", "run"),
        (f"run={RUN} n=1 steps=1 out=file", "out=file", "run", FILE),
        (f"run={RUN} n=1 steps=1 out=file/x", "out=file/x", "run", FILE),
        (f"run={RUN} n=1 steps=1 out=", "out=", "run"),
        (f"run={RUN} n=1 steps=1 out=o", "o holds other images", "run", write("o/request.json", '{"n": 7}')),
        (f"run={RUN} n=1 steps=1 out=o", "o/request.json", "run", write("o/request.json", "{")),
        (f"run={RUN} checkpoint=exported", "run= and checkpoint= are two models", "run export"),
        ("checkpoint=nowhere", "checkpoint=nowhere is not there"),
        ("checkpoint=", "checkpoint="),
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
    ),
    *in_content(
        of(
            "urepa.generate",
            ("checkpoint=w.safetensors", "w.safetensors has no embedding.safetensors", "", write("w.safetensors", "x")),
            (
                "checkpoint=w.safetensors +experiment=repa_cifar10_pixels n=1 steps=1",
                "not a complete safetensors file",
                "",
                write("w.safetensors", "x"),
            ),
            (
                "checkpoint=w.pt +experiment=repa_cifar10_pixels n=1 steps=1",
                "more than tensors",
                "",
                write("w.pt", PICKLE),
            ),
        )
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
        (f"run={RUN} out=there", "there exists already", "run", write("there/x", "")),
        (f"run={RUN} out=file", "file exists already", "run", FILE),
        (f"run={RUN} out=file/x", "out=file/x", "run", FILE),
        (f"run={RUN} out=", "out=", "run"),
        (f"run={RUN} data.vae=x", "data.vae has no effect", "run"),
        (f"run={RUN} backbone.weights=x", "backbone.weights has no effect", "run"),
    ),
    *on_a_run("urepa.export"),
    bound("urepa.export", f"run={RUN}", RUN, "run", "outputs"),
    bound("urepa.export", f"run={RUN} out=new", "new", "run", "."),
]

ALL = [*EVALUATE, *GENERATE, *EXPORT]
