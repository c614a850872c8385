"""Errors that a user can act on: one line that says what is wrong, where, and what to do."""


class UserError(ValueError):
    """Something asked for is missing or wrong; the command line prints only the message."""


class ConfigError(UserError):
    """A config, a command-line option or a combination of them."""


class DataError(UserError):
    """A dataset root, info file or sensor file; names the file and, where known, the sample."""


class CheckpointError(UserError):
    """A checkpoint that is missing, unreadable, or of something else."""


class TrainingError(UserError):
    """A training that cannot go on; says since when, and from which checkpoint to go on."""
