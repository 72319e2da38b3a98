"""Frozen encoders whose patch tokens are the target. A file declares one (`urepa.core.protocols.Teacher`); a file whose
name ends in `_net` has networks with their preprocessing (`urepa.core.protocols.TeacherNetwork`).

Several teachers at once are declared as one `Several`, which has no tokens of its own; `by_name` returns the single
teachers by name.
"""
