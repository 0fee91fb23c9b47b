"""The decoding step as compiled code: every thread walks the whole model, meeting at barriers."""
