"""Files that are there whole or not at all."""


def replace_whole(path, content: str | bytes) -> None:
    """Writes a file, local or gs://, in a folder that is there. A process that is killed meanwhile leaves the file that was
    there before, or none; beside it what `partial` names, which the next write takes over."""
    temporary = partial(path)
    if isinstance(content, bytes):
        temporary.write_bytes(content)
    else:
        temporary.write_text(content)
    temporary.replace(path)


def partial(path):
    """Where a file is written before it takes its place."""
    return path.parent / partial_name(path.name)


def partial_name(name: str) -> str:
    return f".{name}.partial"
