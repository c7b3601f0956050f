"""What a command is: its configuration, its errors, its loggers, and many runs at a time."""
