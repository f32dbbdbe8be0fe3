"""What a person sees of a bench: progress while it runs, tables after it."""
