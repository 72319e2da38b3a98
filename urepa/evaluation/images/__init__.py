"""Which images of a run evaluations look at: a file declares one way (`Images` of
`urepa.core.evaluation_protocols`), and the file of the same name that ends in `_math` makes them."""
