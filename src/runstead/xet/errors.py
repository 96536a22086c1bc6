"""What this room refuses. Every message names the thing, its place and the value at fault."""


class FormatError(ValueError):
    """Bytes or numbers that break a rule of the Xet formats."""


class InvalidHash(FormatError):
    """A text that is not the string form of a hash, or bytes of another length."""


class InvalidChunk(FormatError):
    """A chunk payload that does not decompress to what its header says."""


class InvalidXorb(FormatError):
    """A xorb body whose headers, sizes or hashes do not fit together."""


class InvalidShard(FormatError):
    """A shard that cannot be read, or that says something untrue about files or xorbs."""


class InvalidTerms(FormatError):
    """A list of terms that does not fit the xorbs it names."""


class RangeNotSatisfiable(FormatError):
    """A byte range that starts at or after the end of its file; `size` is the size of the file in bytes."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size
