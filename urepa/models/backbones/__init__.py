"""Denoisers behind one contract: forward(x_t, t, condition, taps) -> Denoised, taps unprojected."""
