class Own(Exception):
    """Mine."""
try:
    {}["missing"]
except KeyError as error:
    try:
        raise Own("second", 2) from error
    except Own:
        raise RuntimeError("third\nline")
