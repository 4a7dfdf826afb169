import getpass, os, pathlib
print(getpass.getuser(), pathlib.Path.home(), os.path.expanduser("~"), os.getlogin.__name__)
