import sys
def f(n):
    if n == 0:
        raise ValueError(n)
for n in range(2):
    try:
        f(n)
    except ValueError as error:
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
