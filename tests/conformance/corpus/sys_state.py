import sys
print(sys.path, sys.path_hooks, sorted(sys.path_importer_cache), sys.meta_path)
print(sys.flags, sys.warnoptions, sys._xoptions, sys.executable, sys.prefix, sys.base_prefix)
print(sys._base_executable, sys.dont_write_bytecode, sys.pycache_prefix, sys.platlibdir)
print(sys.getrecursionlimit(), sys.getswitchinterval(), sys.gettrace(), sys.getprofile())
print(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(), sys.getdefaultencoding())
print(sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__)
print(hasattr(sys, "last_type"), hasattr(sys, "ps1"), sys.exc_info(), sys.breakpointhook)
print(sys.hash_info.algorithm, sys.int_info, sys.implementation.cache_tag, sys.hexversion)
