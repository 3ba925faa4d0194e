"""What files that belong to another one are called."""

from __future__ import annotations


def plain_word(name: str) -> str:
    """A name for what another file names: all letters of all scripts, and no mark that a reader takes for its own.

    OBJ ends a name at a space. glTF has marks escaped as in addresses, and then Godot 3 and Assimp 5.2 look for a file
    that is called `%20`.
    """
    plain = "".join(x if x.isalnum() or x in "-._" or (x > "\x7f" and x.isprintable()) else "_" for x in name.strip())
    return plain or "asset"
