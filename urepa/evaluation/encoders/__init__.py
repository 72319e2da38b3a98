"""What turns images into features for a distance between distributions: a file declares one
(`urepa.core.evaluation_protocols.Encoder`), and the file of the same name that ends in `_net` has its network
(`urepa.core.evaluation_protocols.EncoderNetwork`). Teachers serve as encoders as they are.
"""
