"""Images: finding them, their labels, and reading every usual kind of file as RGB."""
