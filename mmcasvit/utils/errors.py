"""Every exception class of the package; raising one imports nothing heavy."""


class UsageError(Exception):
    """Wrong input; the message says what was wrong and what would be right."""


class WeightsError(ValueError):
    """A checkpoint that cannot be read safely or does not fit the model; the message says what to do."""


class RunStopped(RuntimeError):
    """Training that cannot go on; the message says why, and from where it can be taken up again."""


class DataError(RuntimeError):
    """Training data that a run cannot go on with; the message says which files and what to do."""


class PlugError(ValueError):
    """A config that CAS-ViT does not fit into by rule; the message says why and what to do."""


class TrialError(PlugError):
    """A model that fails when it is tried.

    Attributes:
        stage: ``'build'``, ``'train'`` or ``'predict'``.
        reason: the error that the model raised, shortened.
    """

    def __init__(self, stage: str, message: str, reason: str):
        super().__init__(message)
        self.stage = stage
        self.reason = reason


class NotApplicable(Exception):
    """A combination that makes no sense; the message says why."""


class MissingLibrary(NotApplicable):
    """A peer whose library cannot be imported; the message says what to install.

    Attributes:
        model: the peer.
        reason: the message without its name.
    """

    def __init__(self, model: str, reason: str):
        super().__init__(f'{model} {reason}')
        self.model, self.reason = model, reason


class Enough(Exception):
    """Enough steps were measured."""


class TrainingTooShort(ValueError):
    """The training of a config has fewer steps than are to be measured."""

    def __init__(self, steps: int, wanted: int):
        super().__init__(f'the training ended after {steps} steps, {wanted} were wanted')


class Refused(Exception):
    """A request that is not answered; carries the status of HTTP, and says what was wrong and what would be right."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status
