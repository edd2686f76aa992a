"""Errors that a user can mend: each message names the file, row or argument and the remedy."""


class StagewiseError(ValueError):
    """Base of the errors that end a command with one clear line instead of a traceback."""


class DatasetNotFoundError(StagewiseError):
    """A data file is not where the configuration says."""


class BadRowsError(StagewiseError):
    """Rows of a table cannot be used; the message names the first ten."""


class SplitLeakError(StagewiseError):
    """Two splits share a place or a picture."""


class QuotaError(StagewiseError):
    """The quotas of a balanced batch cannot be met."""


class DataMismatchError(StagewiseError):
    """A checkpoint was made with other data than it is resumed with."""


class ShardError(StagewiseError):
    """A shard of a streamed store is missing, damaged or out of reach."""


class StaleCacheError(StagewiseError):
    """A cache was made from other weights, transforms or data."""


class CheckpointError(StagewiseError):
    """A checkpoint is missing, unreadable, or belongs to another model or region list."""
