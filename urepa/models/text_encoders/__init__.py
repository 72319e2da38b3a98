"""Text encoders: one declaration per file, and the network class that they share. The text encoder that scores images
is in `urepa.evaluation`."""
