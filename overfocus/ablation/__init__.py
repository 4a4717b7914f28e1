"""What happens to predictions when the most attended tokens are taken out of the attention."""
