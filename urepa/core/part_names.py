"""Names of the parts of a condition (`urepa.core.conditions`), without torch."""

CLASS = "class"  # the id of a sample's class
TEXT = "text"  # the tokens of its caption, with a mask
POOLED = "text.pooled"  # one vector of its caption; the name "text" covers it too
LAYERS = "text.layers"  # the tokens of several layers of a language model, stacked, with a mask; "text" covers it too
IMAGE = "image"  # the sample's own x0 [C,H,W] as tokens [H*W,C], row by row
KEEP = "image.keep"  # [1]: a number in [0,1) that determines how many registers are kept; "image" covers it too
CODES = "codes"  # the quantised registers of an image, with a mask that is True for the registers that are kept
CLS = "image.cls"  # one vector of an image by an encoder of images, its class token or a mean; "image" covers it too
PATCHES = "image.patches"  # the encoder's tokens of the image's patches, with their grid; "image" covers them too
