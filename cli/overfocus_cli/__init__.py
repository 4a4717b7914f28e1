"""The program `overfocus`: one module per command, nothing heavy imported before a command needs it."""
