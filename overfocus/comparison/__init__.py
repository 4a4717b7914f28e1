"""Several runs on the same images side by side: differences with intervals, verdicts in words, and what explains fragility."""
