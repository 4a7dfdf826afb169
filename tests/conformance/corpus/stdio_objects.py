import os
import sys
for file in (sys.stdin, sys.stdout, sys.stderr):
    print(file.name, file.mode, file.encoding, file.errors, file.line_buffering, file.newlines)
    print(file.write_through, file.isatty(), file.seekable(), file.readable(), file.writable())
    print(type(file.buffer), type(file.buffer.raw), file.buffer.raw.mode, file.buffer.raw.closefd)
    print(file.buffer.raw._blksize, file._CHUNK_SIZE)
print(sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__)
