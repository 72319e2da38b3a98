"""Names of the parts of a condition (`urepa.core.conditions`), without torch."""

CLASS = "class"  # the id of a sample's class
TEXT = "text"  # the tokens of its caption, with a mask
POOLED = "text.pooled"  # one vector of its caption; the name "text" covers it too
LAYERS = "text.layers"  # the tokens of several layers of a language model, stacked, with a mask; "text" covers it too
