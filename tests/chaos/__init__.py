"""What goes wrong, made to go wrong: faults under load, and checkers that read only what the clients saw."""
