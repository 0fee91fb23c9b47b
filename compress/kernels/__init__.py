"""Pure functions on tensors: no modules, no files, no logging, no globals."""
