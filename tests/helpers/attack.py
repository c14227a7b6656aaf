"""A pickle that leaves a trace when it is executed."""

import os


class Attack:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)
