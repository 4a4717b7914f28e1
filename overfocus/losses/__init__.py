"""Losses that keep attention from collapsing onto a few tokens."""

from overfocus.losses.attention_diversification import AttentionDiversificationLoss, Diversification, diversify

__all__ = ["AttentionDiversificationLoss", "Diversification", "diversify"]
