"""What the user asked for: its schema, its reading, and the lock that runs again. No torch."""
