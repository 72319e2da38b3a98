"""Which measured values may be compared although a setting differs: what `setting(alters=...)` says.

A setting alters a quantity if two runs that differ in it measure two quantities of one name: the diffusion losses of ε
and of v are such, those of two heads are not. A run is compared with another in what none of their differing settings
alters. A setting of a loss, a schedule, an objective, a teacher or a track that says nothing alters `SILENT` of its
kind; one of another kind alters nothing, as arms are about these. What exchanging one part for another alters stands in
`alters: ClassVar[tuple[str, ...]]` of both; a part without it says nothing.
"""

from __future__ import annotations

# the terms of the training and validation losses, under the names they are logged by
DIFFUSION, X0_ERROR, TOKEN, MANIFOLD, TOTAL = "diffusion", "x0_error", "token", "manifold", "total"
ALIGNMENT = (TOKEN, MANIFOLD, TOTAL)
TOTAL_BY_STEP = "total by step"  # the training total, which has each step's own λ

EVERY_TERM = "every term"  # also those that no part of this project has
MEANS_OVER_TIMES = "means over times"  # every term but those of one interval of times
EVERYTHING = "everything"  # what is validated and evaluated: such runs are not compared at all
NOISE_LEVELS = "noise levels"  # a timestep is another share of noise: curves over t have no common axis

NOTHING: tuple[str, ...] = ()
SILENT: dict[str, tuple[str, ...]] = {
    "loss": (EVERY_TERM,),
    "schedule": (TOTAL,),
    "objective": (EVERY_TERM, NOISE_LEVELS),
    "teacher": (EVERY_TERM,),
    "data": (EVERYTHING,),
}
