"""The only room that knows torch modules and transformers."""
