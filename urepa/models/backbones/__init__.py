"""Denoisers with one interface. A file declares one (`urepa.core.backbone_protocols.Backbone`); a file whose name ends
in `_net` has modules (`BackboneNetwork`) or reads their weights: forward(x_t, t, condition, taps) -> Denoised, with
unprojected taps."""
