"""Workers: they lease tasks from a queue, run them, and settle them."""
