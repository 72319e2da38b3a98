"""The shapes of λ after its warm-up: each file declares one (`urepa.core.protocols.Schedule`)."""
