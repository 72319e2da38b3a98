"""urepa: ablations of representation alignment (REPA, U-REPA) in diffusion training."""
