import site
import sysconfig
import builtins
print(site.ENABLE_USER_SITE, site.USER_BASE, site.USER_SITE, site.PREFIXES, site.getsitepackages())
print(sorted(sysconfig.get_paths().items()))
print(help, copyright, exit, quit, license)
print(sorted(n for n in dir(builtins)))
