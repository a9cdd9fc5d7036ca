"""Makes names, which are whatever a user called a thing, fit for one line."""


def one_line(text: object) -> str:
    """The text with a space for each line break and control character."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def short(text: object, longest: int = 24) -> str:
    """The text on one line, cut in the middle: the ends of source names tell them apart."""
    line = one_line(text)
    if len(line) <= longest:
        return line
    half = (longest - 1) // 2
    return f"{line[:half]}…{line[-half:]}"
