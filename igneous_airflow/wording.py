"""How messages write numbers; used wherever words are made for people."""


def counted(count: int, one: str, several: str = "") -> str:
    """Write a number of things: 1 file, 2,000 files; `several` is a plural that needs more."""
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def size_range(least: int, most: int | None) -> str:
    """Write which numbers of bytes there can be: 512, at least 1, 21 to 9,000."""
    if most is None:
        return f"at least {least:,}"
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
