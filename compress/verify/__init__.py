"""An artifact held against what it should be, by a reader of its own and by its consumers."""
