"""One exception hierarchy, by boundary. Each message names the field, file or line, what was found, and the way out."""


class MmprmError(Exception):
    """Base of every error that a user can cause and mend; the command line prints it and exits with 2."""


class ConfigError(MmprmError):
    """A configuration key or value breaks its rule."""


class DataError(MmprmError):
    """An input file, line, picture or record cannot be used."""


class SamplingError(MmprmError):
    """An engine or server could not produce completions."""


class EngineStoppedError(SamplingError):
    """The engine itself is gone, whatever it was asked: its requests can be made again on another one."""


class GradingError(MmprmError):
    """The graders themselves could not run; an answer that cannot be judged is Verdict.UNKNOWN instead."""


class StoreError(MmprmError):
    """The run store cannot be opened, read or written."""


class CheckpointError(MmprmError):
    """A model folder or checkpoint is not what the command needs."""


class TrainingError(MmprmError):
    """Training cannot go on."""


class SetupError(MmprmError):
    """This machine lacks something that the command needs; `mmprm doctor` says what to install."""
