"""Judge models by what they say: on text, on tasks, side by side."""
