"""Run folders: what describes them, how they are written and read."""
