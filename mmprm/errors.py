"""Define one exception hierarchy. Each message names the field, file or line, what was found, and how to resolve it."""


class MmprmError(Exception):
    """Base of every error that a user can cause and resolve; the command line prints it and exits with 2."""


class ConfigError(MmprmError):
    """A configuration key or value violates its rule."""


class DataError(MmprmError):
    """An input file, line, image or record cannot be used."""


class SamplingError(MmprmError):
    """An engine or server could not produce completions."""


class EngineStoppedError(SamplingError):
    """The engine itself is gone, independent of the request: its requests can be retried on another engine."""


class GradingError(MmprmError):
    """The graders themselves could not run; an answer that cannot be judged gets Verdict.UNKNOWN instead."""


class StoreError(MmprmError):
    """The run store cannot be opened, read or written."""


class CheckpointError(MmprmError):
    """A model folder or checkpoint is not what the command needs."""


class TrainingError(MmprmError):
    """Training cannot continue."""


class SetupError(MmprmError):
    """This machine lacks something that the command needs; `mmprm doctor` reports what to install."""
