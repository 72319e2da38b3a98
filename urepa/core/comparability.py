"""Which measured values are comparable although a setting differs, as declared by `setting(alters=...)`.

A setting alters a quantity if two runs that differ in it measure different quantities under the same name. For example,
the diffusion losses of ε and of v prediction are different quantities; those of runs with two heads are the same. Two
runs are compared in the quantities that none of their differing settings alters. A setting of a loss, a schedule, an
objective, a teacher or a track without `alters` alters the `SILENT` quantities of its kind. A setting of another kind
without `alters` alters nothing, because arms differ in these kinds. What the exchange of one part for another alters is
declared in `alters: ClassVar[tuple[str, ...]]` of both; a part without it is treated like a setting without `alters`.
"""

from __future__ import annotations

# terms of the training and validation losses, by the names under which they are logged
DIFFUSION, X0_ERROR, TOKEN, MANIFOLD, TOTAL = "diffusion", "x0_error", "token", "manifold", "total"
ALIGNMENT = (TOKEN, MANIFOLD, TOTAL)
TERMS = "term"  # the terms of loss=several_terms, logged as term/NAME; what alters the token loss alters these too
TOTAL_BY_STEP = "total by step"  # the training total, which has each step's own λ

EVERY_TERM = "every term"  # including terms of users' own parts
MEANS_OVER_TIMES = "means over times"  # every term except those of a single interval of times
EVERYTHING = "everything"  # also validation and evaluation data: such runs are not compared at all
NOISE_LEVELS = "noise levels"  # a timestep has another share of noise: curves over t have no common axis

NOTHING: tuple[str, ...] = ()
SILENT: dict[str, tuple[str, ...]] = {
    "loss": (EVERY_TERM,),
    "schedule": (TOTAL,),
    "objective": (EVERY_TERM, NOISE_LEVELS),
    "teacher": (EVERY_TERM,),
    "data": (EVERYTHING,),
}
