"""Text encoders: a declaration a file, and the network that they share. The text tower that scores images is in
`urepa.evaluation`."""
