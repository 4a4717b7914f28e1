"""Figures of what was measured, drawn with matplotlib: for notebooks, for papers and for the report."""
