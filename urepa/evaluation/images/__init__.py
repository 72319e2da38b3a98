"""The images of a run that evaluations use. A file declares one way to get them (`Images` of
`urepa.core.evaluation_protocols`), and the file of the same name with the ending `_math` computes them."""
