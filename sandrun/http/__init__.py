"""The http process. Runs as: an unprivileged uid under its own filter; never imports
``sandrun.pool`` or ctypes.
"""
