"""The shapes of λ after its warm-up: a declaration each (`urepa.core.protocols.Schedule`)."""
