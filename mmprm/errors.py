"""Define the exception hierarchy. Each message names the field, file or line, what was found, and how to fix it."""


class MmprmError(Exception):
    """Base class of all errors that a user can resolve. The command line prints them and exits with code 2."""


class ConfigError(MmprmError):
    """Raised for an invalid configuration key or value."""


class DataError(MmprmError):
    """Raised for an input file, line, image or record that cannot be used."""


class UnknownScoresError(DataError):
    """Raised for a solution about which no verdicts of a thinking judge could be read.

    `tokens` is the number of tokens that the judge generated for it.
    """

    def __init__(self, message: str, tokens: int = 0) -> None:
        super().__init__(message)
        self.tokens = tokens


class SamplingError(MmprmError):
    """Raised when an engine or server fails to produce completions."""


class ContextLimitError(SamplingError):
    """Raised for a prompt that exceeds the model's context."""


class EngineStoppedError(SamplingError):
    """Raised when an engine or server cannot serve any request. Its requests can be retried on another engine."""


class EpisodeError(MmprmError):
    """Raised when an environment fails, or when replaying an episode does not reproduce it exactly."""


class GradingError(MmprmError):
    """Raised when a grader fails to run. An answer that cannot be judged gets Verdict.UNKNOWN instead."""


class StoreError(MmprmError):
    """Raised when a run store cannot be opened, read or written."""


class CheckpointError(MmprmError):
    """Raised when a model folder or checkpoint does not meet the command's requirements."""


class TrainingError(MmprmError):
    """Raised when training cannot continue."""


class SetupError(MmprmError):
    """Raised when this machine does not meet a requirement of the command; `mmprm doctor` reports what to install."""
