"""Frozen encoders whose patch tokens are the target. A teacher owns its preprocessing.

Contract: `manifest()` says what would change its tokens, without loading weights; `width` and `grid` are
what heads need; `tokens(images)` takes RGB in [0,1], [B,3,H,W], and returns Tokens.
Several teachers at once are one `Several`, which has no tokens of its own; `by_name` gives one's or several's members.
"""
