"""What is measured of a run: a file declares one evaluation (`Evaluation` of
`urepa.core.evaluation_protocols`), with the columns that its values have in `compare`. Files whose names
end in `_math` measure, each for one evaluation or for several."""
