"""Every exception class of the package; this file imports nothing."""


class UsageError(Exception):
    """Wrong input. The message says what was wrong and what would be right."""


class WeightsError(ValueError):
    """A checkpoint that cannot be read safely or does not fit the model. The message says what to do."""


class RunStopped(RuntimeError):
    """Training that cannot continue. The message says why, and from which checkpoint it can be resumed."""


class DataError(RuntimeError):
    """Training data that a run cannot continue with. The message names the files and says what to do."""


class PlugError(ValueError):
    """A config that CAS-ViT does not fit into. The message says why and what to do."""


class TrialError(PlugError):
    """A model that fails when it is tried.

    Attributes:
        stage: ``'build'``, ``'train'`` or ``'predict'``.
        reason: The error that the model raised, shortened.
    """

    def __init__(self, stage: str, message: str, reason: str):
        super().__init__(message)
        self.stage = stage
        self.reason = reason


class NotApplicable(Exception):
    """A combination of options that makes no sense. The message says why."""


class MissingLibrary(NotApplicable):
    """A model whose library cannot be imported. The message says what to install.

    Attributes:
        model: The name of the model.
        reason: The message without that name.
    """

    def __init__(self, model: str, reason: str):
        super().__init__(f'{model} {reason}')
        self.model, self.reason = model, reason


class Enough(Exception):
    """A measurement of training steps that is complete."""


class TrainingTooShort(ValueError):
    """A training schedule with fewer steps than are to be measured."""

    def __init__(self, steps: int, wanted: int):
        super().__init__(f'the training ended after {steps} steps, {wanted} were wanted')


class Refused(Exception):
    """A request that the server does not answer. The message says what was wrong and what would be right.

    Attributes:
        status: The HTTP status of the response.
    """

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status
