import sys
print(sys.flags.interactive, sys.flags.inspect, hasattr(sys, "ps1"))
import code
code.interact(banner="b", exitmsg="e", readfunc=lambda prompt: (_ for _ in ()).throw(EOFError))
