"""Exceptions of the public interface. Each message says what was expected, what came and what to do."""


class AntiphonError(Exception):
    """Base of every error that a caller can cause or must handle."""


class InputError(AntiphonError, ValueError):
    """A request is malformed: unknown role or message type, impossible option, wrong kind of content."""


class AudioError(InputError):
    """A recording cannot be read, is not sound, or holds no samples."""


class PromptTooLongError(InputError):
    """The prompt does not fit into the model's context."""


class CheckpointError(AntiphonError):
    """A model folder is incomplete, damaged, or holds what the configuration does not describe."""


class ConfigError(AntiphonError, ValueError):
    """A configuration value is unknown, missing or out of range."""


class EngineError(AntiphonError, RuntimeError):
    """The engine failed while it worked on an accepted request."""


class EngineDeadError(EngineError):
    """The engine's process ended while it held the request, or is being restarted; the request may be sent again."""


class OverloadedError(AntiphonError):
    """The engine takes no more requests at the moment; nothing was accepted."""
