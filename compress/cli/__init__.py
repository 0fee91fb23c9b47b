"""The command `compress`: arguments in, tables and exit codes out. The only room that prints."""
