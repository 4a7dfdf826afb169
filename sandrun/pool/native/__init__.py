"""PID 1 of a sandbox in C, and what builds and feeds it. See init.h for why it is here.

Optional: without a compiler every PID 1 is the Python one (``pool/zygote``), which
does the same for more CPU. Both pass the same tests.
"""
