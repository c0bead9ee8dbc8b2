"""What can go wrong in the model package, each error with what a person needs to mend it."""


class ModelError(Exception):
    """Root of every error this package raises for a reason outside its own code."""


class ConfigInvalid(ModelError):
    """A checkpoint's or the engine's configuration cannot be used."""

    def __init__(self, key: str, value: object, expected: str, remedy: str) -> None:
        super().__init__(f"{key} is {value!r}, expected {expected}; {remedy}")
        self.key = key
        self.value = value


class CheckpointNotFound(ModelError):
    """No checkpoint stands where one was named."""


class WeightsMismatch(ModelError):
    """Checkpoint and model disagree about a parameter: missing, left over or of another shape."""


class RequestRefused(ModelError):
    """A request was refused before anything of it ran. ``param`` names the field to blame."""

    param: str | None = None


class PromptTooLong(RequestRefused):
    """Prompt plus the tokens asked for do not fit the hard context limit."""

    param = "messages"

    def __init__(self, num_prompt_tokens: int, max_tokens: int, max_context_tokens: int) -> None:
        super().__init__(
            f"the prompt has {num_prompt_tokens} tokens and {max_tokens} more were asked for, "
            f"but the context limit is {max_context_tokens} tokens; shorten the prompt, lower "
            "max_tokens or raise FANO_MAX_CONTEXT_TOKENS"
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_tokens = max_tokens
        self.max_context_tokens = max_context_tokens


class NeverFits(RequestRefused):
    """The request needs more of a pool than the whole pool has, so that waiting would not help."""

    def __init__(self, param: str, pool: str, needed: int, capacity: int, remedy: str, unit: str = "units") -> None:
        super().__init__(f"the request needs {needed} {unit} of pool {pool!r}, which has {capacity}; {remedy}")
        self.param = param
        self.pool = pool
        self.needed = needed
        self.capacity = capacity


class ConstraintFailed(ModelError):
    """What says which tokens may come next cannot say it any more. ``param`` is what the client asked for."""

    def __init__(self, reason: str, param: str) -> None:
        super().__init__(reason)
        self.param = param


class QueueFull(RequestRefused):
    """The waiting line is at its bound; try again after ``retry_after_seconds``."""

    def __init__(self, num_waiting: int, max_waiting: int, retry_after_seconds: int) -> None:
        super().__init__(
            f"{num_waiting} requests are waiting and the queue holds {max_waiting}; "
            f"try again in {retry_after_seconds} seconds"
        )
        self.retry_after_seconds = retry_after_seconds


class EngineDraining(RequestRefused):
    """The engine finishes what it has and takes nothing new."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down and takes no new requests; ask another replica or try again")


class InvalidRequest(RequestRefused):
    """A field of a request has a value the engine cannot work with."""

    def __init__(self, param: str, value: object, expected: str) -> None:
        super().__init__(f"{param} is {value!r}, expected {expected}")
        self.param = param


class ChatTemplateMissing(RequestRefused):
    """The checkpoint has no chat template, so a list of messages cannot become a prompt."""

    param = "messages"

    def __init__(self, directory: object) -> None:
        super().__init__(
            f"the checkpoint in {str(directory)!r} has no chat template; "
            "put a chat_template.jinja beside its tokenizer.json"
        )


class ChatTemplateRejected(RequestRefused):
    """The checkpoint's chat template does not take these messages, for the reason it gives itself."""

    param = "messages"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the model's chat template does not take these messages: {reason}")


class GenerationFailed(ModelError):
    """One request could not go on after it was accepted; the others are not touched."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"generation stopped by {type(cause).__name__}; send the request again")
        self.cause = cause


class DeadlineExceeded(ModelError):
    """A request did not end in the time it was given."""

    def __init__(self, max_seconds: float) -> None:
        super().__init__(
            f"the request did not end within {max_seconds:g} seconds; ask for fewer tokens, try again when the "
            "server is less busy, or raise FANO_MAX_REQUEST_SECONDS"
        )
        self.max_seconds = max_seconds


class EngineStopped(ModelError):
    """The engine runs no more, so that no request can be accepted or finished."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the engine has stopped ({reason}); restart the server or ask another replica")


class PoolExhausted(ModelError):
    """A pool has fewer free units than were asked for."""

    def __init__(self, pool: str, needed: int, free: int, total: int) -> None:
        super().__init__(f"pool {pool!r} has {free} of {total} units free, {needed} were needed")
        self.pool = pool
        self.needed = needed
        self.free = free
        self.total = total


class ArchiveFull(ModelError):
    """The archive of keys and values has no room, and nobody who could make some without being named."""

    def __init__(self, needed_bytes: int, total_bytes: int, used_bytes: int) -> None:
        super().__init__(
            f"pool 'kv_archive' has {total_bytes - used_bytes} of {total_bytes} bytes free, {needed_bytes} more were "
            "needed; save or delete named sessions, ask again when fewer requests run, or raise FANO_ARCHIVE_BYTES or "
            "FANO_ARCHIVE_DISK_BYTES"
        )
        self.needed_bytes = needed_bytes
        self.total_bytes = total_bytes
        self.used_bytes = used_bytes


class HostBudgetExceeded(ModelError):
    """Host memory for checkpoints is taken by named sessions whose state is nowhere else."""

    def __init__(self, needed_bytes: int, budget_bytes: int, used_bytes: int) -> None:
        super().__init__(
            f"{needed_bytes} bytes of host memory were needed for session states, but {used_bytes} of "
            f"{budget_bytes} are taken by sessions that are not saved; save or delete some, or raise FANO_SESSION_BYTES"
        )
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes
        self.used_bytes = used_bytes
