"""Denoisers behind one contract: a file declares one (`urepa.core.backbone_protocols.Backbone`), and a file whose name
ends in `_net` has modules (`BackboneNetwork`) or their weights: forward(x_t, t, condition, taps) -> Denoised, with taps
as they are."""
