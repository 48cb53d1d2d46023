"""One attempt of a task: its steps in order, their output, their ends."""
