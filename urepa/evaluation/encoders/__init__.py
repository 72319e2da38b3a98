"""Encoders, which map images to features for a distance between distributions. A file declares one encoder
(`urepa.core.evaluation_protocols.Encoder`), and the file of the same name with the ending `_net` has its network
(`urepa.core.evaluation_protocols.EncoderNetwork`). Teachers can be used as encoders without change.
"""
