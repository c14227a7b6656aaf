"""The published figures, measured again: what to evaluate, the processes that do, and the table of results."""
