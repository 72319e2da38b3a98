"""Frozen encoders whose patch tokens are the target: a file declares one (`urepa.core.protocols.Teacher`), and a file
whose name ends in `_net` has networks (`urepa.core.protocols.TeacherNetwork`), which own their preprocessing.

Several teachers at once are one `Several`, which has no tokens of its own; `by_name` gives one's or several's members.
"""
