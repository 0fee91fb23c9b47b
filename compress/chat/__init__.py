"""Chat templates: small programs that came with a model, run in a process of their own."""
