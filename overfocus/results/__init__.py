"""What was found, as data: comparisons of runs, how runs are brought together, and tables of them for a page."""
