"""Define the exception hierarchy. Each message names the field, file or line, what was found, and how to fix it."""


class MmprmError(Exception):
    """Base class of all errors that a user can cause and fix; the command line prints it and exits with code 2."""


class ConfigError(MmprmError):
    """A configuration key or value is invalid."""


class DataError(MmprmError):
    """An input file, line, image or record cannot be used."""


class SamplingError(MmprmError):
    """An engine or server failed to produce completions."""


class EngineStoppedError(SamplingError):
    """The engine itself has stopped, regardless of the request; its requests can be retried on another engine."""


class GradingError(MmprmError):
    """The graders themselves failed to run; an answer that cannot be judged gets Verdict.UNKNOWN instead."""


class StoreError(MmprmError):
    """The run store cannot be opened, read or written."""


class CheckpointError(MmprmError):
    """A model folder or checkpoint does not meet the command's requirements."""


class TrainingError(MmprmError):
    """Training cannot continue."""


class SetupError(MmprmError):
    """This machine does not meet a requirement of the command; `mmprm doctor` reports what to install."""
