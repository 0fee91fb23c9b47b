"""What a run leaves on disk: writing it, reading it back, and proving that it is whole."""
