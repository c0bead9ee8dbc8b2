"""Sizes in bytes for people."""


def readable(num_bytes: int) -> str:
    """Three or four digits with a binary unit; bytes as they are."""
    size, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
