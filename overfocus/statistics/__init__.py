"""Statistics of runs and comparisons: arrays and tables in, estimates with intervals and verdicts out; no figures, no models."""
