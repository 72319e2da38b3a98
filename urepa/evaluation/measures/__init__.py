"""The evaluations. A file declares one evaluation (`Evaluation` of `urepa.core.evaluation_protocols`) with the columns
of its values in `compare`. A file whose name ends in `_math` computes the values of one evaluation or of several."""
