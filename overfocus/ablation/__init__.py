"""What happens to predictions when the most attended patches are taken out of the attention, or corrupted."""
