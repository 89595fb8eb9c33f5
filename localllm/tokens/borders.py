"""The failure table of Knuth, Morris and Pratt: where a search goes on after a mismatch."""


def borders(text: str | bytes) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    found = [0] * len(text)
    length = 0
    for place in range(1, len(text)):
        while length and text[place] != text[length]:
            length = found[length - 1]
        length += text[place] == text[length]
        found[place] = length
    return found
