"""Training and fine-tuning with TAP and ADL."""
