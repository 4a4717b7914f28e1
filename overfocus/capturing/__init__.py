"""Attention of any model, captured while it runs and without changing it.

with overfocus.capture(model) as captured:
    logits = model(images)
captured.maps[0].weights          # (batch, heads, queries, keys)
"""

from overfocus.capturing.context import Captured, capture
from overfocus.capturing.coverage import Site

__all__ = ["Captured", "Site", "capture"]
