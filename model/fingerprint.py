"""What a saved state depends on: under another fingerprint the same bytes would mean something else. No torch."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

# Raised whenever a kernel takes its sums in another order: states saved before are not those it would have come to.
ARITHMETIC = 2


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The parts by name; states may be exchanged between engines for which all are equal.

    ``weights`` and ``tokenizer`` are SHA-256 of the checkpoint's files, ``kernels`` is the path through the kernels,
    whose rounding differs between paths.
    """

    weights: str
    tokenizer: str
    policy: str
    dtype: str
    kernels: str

    def to_dict(self) -> dict[str, str]:
        """The parts, to be stored."""
        return asdict(self)

    @staticmethod
    def from_dict(parts: Mapping[str, str]) -> "Fingerprint":
        """What ``to_dict`` gave. Raises KeyError naming a part that is missing."""
        return Fingerprint(**{field.name: parts[field.name] for field in fields(Fingerprint)})

    def differences(self, other: "Fingerprint") -> tuple[str, ...]:
        """Names of the parts that are not the same."""
        return tuple(
            field.name for field in fields(Fingerprint) if getattr(self, field.name) != getattr(other, field.name)
        )


def weights_digest(directory: Path) -> str:
    """SHA-256 over the configuration and every weights file of a checkpoint, in the order of their names."""
    digest = hashlib.sha256()
    for path in [directory / "config.json", *sorted(directory.glob("*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
