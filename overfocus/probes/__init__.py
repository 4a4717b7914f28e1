"""Probes: what is asked of the forwards of a sweep, each in one file."""
